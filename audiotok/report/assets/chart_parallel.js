// Parallel coordinates over parameters and metrics. A range brushed on an axis, or given in the fields below, filters the
// table, the other plots and the players.

function startParallel() {
  if (charts.points.length < 2) return;
  // Better is up on every axis: one that is better near 0 has the distance from 0.
  const placed = ({ metric }, value) => (value !== null && metric.direction === "near_zero" ? Math.abs(value) : value);
  const isDown = ({ metric }) => ["lower", "near_zero"].includes(metric?.direction);
  const titleOf = (axis) => (axis.metric?.direction === "near_zero" ? axis.name.replace(/[^.]*$/, "|$&|") : axis.name);
  const every = [
    ...charts.parameters.map((parameter) => ({ name: parameter.name, parameter })),
    ...charts.metrics.map((metric) => ({ name: metric.name, metric })),
  ];
  const judged = every.filter(({ metric }) => metric && directed(metric) && new Set(metric.values).size > 2);
  const standard = new Set([...every.filter(({ parameter }) => parameter).slice(0, 6), ...judged.filter(({ metric }) => usualMetrics().slice(0, 2).includes(metric)), ...judged.slice(-3)]);
  const boxes = make("fieldset");
  boxes.append(make("legend", "soft", "axes"));
  for (const axis of every) {
    const wrap = make("label");
    axis.box = make("input");
    axis.box.type = "checkbox";
    axis.box.checked = standard.has(axis);
    wrap.append(axis.box, axis.name);
    boxes.append(wrap);
  }
  const chosenAxes = make("details");
  chosenAxes.append(make("summary", "", "Axes"), boxes);
  const colour = metricChoice("colour", usualMetrics()[0].name);
  const along = choice("range of", every.map((axis) => [axis.name, titleOf(axis)]));
  const ends = ["from", "to"].map((label) => {
    const wrap = make("label", "", label);
    wrap.input = make("input");
    wrap.input.type = "text";
    wrap.input.size = 8;
    wrap.input.setAttribute("aria-label", label);
    wrap.append(wrap.input);
    return wrap;
  });
  const apply = make("button", "", "Filter by the range");
  apply.type = "button";
  const ranges = new Map(); // name of an axis: [[low, high], ...], levels of a parameter by their place
  const axes = () => every.filter(({ box }) => box.checked);
  // Lines of one value of a parameter lie beside one another, so that their colours can be seen.
  const shift = (point) => 0.3 * (((point * 0.618034) % 1) - 0.5);
  const valueOf = (axis, point) => (axis.parameter ? axis.parameter.of[point] + shift(point) : placed(axis, axis.metric.values[point]));

  function select() {
    const active = [...ranges].filter(([, list]) => list.length).map(([name, list]) => [every.find((axis) => axis.name === name), list]);
    if (!active.length) return sendBrush(null);
    const fits = (point) =>
      active.every(([axis, list]) => {
        const value = valueOf(axis, point);
        return value !== null && list.some(([low, high]) => low <= value && value <= high);
      });
    sendBrush(charts.points.flatMap((_, point) => (fits(point) ? sigsOf(point) : [])));
  }

  // Areas on the axes as the ranges are; ECharts draws them with the next drawing.
  function showAreas(view) {
    for (const [place, { name, box }] of every.entries()) {
      if (box.checked) view?.dispatchAction({ type: "axisAreaSelect", parallelAxisId: `axis${place}`, intervals: ranges.get(name) ?? [] });
    }
  }

  function lineColour(metric, point, spread) {
    const value = metric.values[point];
    if (value === null) return cssColour("soft");
    const place = spread[1] > spread[0] ? (score(metric, value) - spread[0]) / (spread[1] - spread[0]) : 1;
    return rampColour(place);
  }

  function build(chart) {
    const narrow = isNarrow(chart);
    const used = axes();
    const metric = metricOf(colour.select.value);
    const scores = metric.values.filter((value) => value !== null).map((value) => score(metric, value));
    const spread = [scores.reduce((a, b) => Math.min(a, b), Infinity), scores.reduce((a, b) => Math.max(a, b), -Infinity)];
    chart.box.style.height = narrow ? `${4.2 * used.length + 3}rem` : "";
    chart.view?.resize();
    const name = (axis) => {
      const arrow = axis.metric ? arrowOf(axis.metric) : "";
      const text = titleOf(axis).split(".");
      return (narrow ? titleOf(axis) : `${text.slice(0, -1).join(".")}\n${text.at(-1)}`).trim() + arrow;
    };
    const halo = { color: cssColour("ink"), hideOverlap: true, textBorderColor: cssColour("card"), textBorderWidth: 3 };
    const places = ({ levels: { length } }) => // of its values; of hundreds a dozen have a label
      length > 24 ? { min: -1, max: length, interval: Math.ceil(length / 12) } : { min: -0.5, max: length - 0.5, interval: 0.5 };
    const parallelAxis = used.map((axis, dim) => ({
      dim, name: narrow ? "" : name(axis), id: `axis${every.indexOf(axis)}`, nameLocation: isDown(axis) ? "start" : "end", realtime: false,
      ...(axis.parameter
        ? { type: "value", ...places(axis.parameter), axisTick: { show: false }, axisLabel: { ...halo, width: 90, overflow: "truncate", formatter: (level) => axis.parameter.levels[level] ?? "" } }
        : { type: "value", scale: true, inverse: isDown(axis), axisLabel: { ...halo, formatter: plainAxis } }),
      nameTextStyle: { color: cssColour("ink"), fontSize: 11, lineHeight: 14, align: "center" },
      nameGap: 12,
      axisLine: { lineStyle: { color: cssColour("strong-line") } }, areaSelectStyle: { width: 22, borderColor: cssColour("accent"), color: `${cssColour("accent")}44`, opacity: 1 },
    }));
    const placeOf = (place) => 40 + (place * (chart.box.clientHeight - 70)) / Math.max(1, used.length - 1); // of an axis, px
    const hidden = charts.points.map((_, point) => !pointShown(point));
    const many = Math.max(0.15, Math.min(0.8, 60 / charts.points.length));
    const lines = charts.points.map((_, point) => ({
      value: used.map((axis) => valueOf(axis, point)), point,
      lineStyle: { color: lineColour(metric, point, spread), opacity: hidden[point] ? 0.03 : brushed ? Math.max(many, 0.5) : many },
    }));
    const left = hidden.filter((one) => !one).length;
    const scaleText = metric.direction === "neutral" ? ["low", "high"] : ["worse", "better"];
    const scale = scaleColours();
    fillKey(chart, [{ colour: scale[0], sign: "━", text: `${scaleText[0]} ${metric.name}` }, { colour: scale.at(-1), sign: "━", text: scaleText[1] }]);
    chart.note.textContent = `${left} of ${charts.points.length} ${charts.things} shown. Drag along an axis to filter the table, all plots and the players; a click on the axis, or “Show all”, takes it back. Better is ${narrow ? "right" : "up"} on every axis of a metric.`;
    chart.describe(`Parallel coordinates of ${left} ${charts.things} over ${used.map((axis) => axis.name).join(", ")}; the fields above filter by a range.`);
    return {
      parallel: narrow
        ? { layout: "vertical", left: 24, right: 26, top: 40, bottom: 30, parallelAxisDefault: {} }
        : { left: 40, right: 60, top: 56, bottom: 24 },
      parallelAxis,
      title: narrow ? used.map((axis, place) => ({ text: name(axis), left: 12, top: placeOf(place) - 20, textStyle: { fontSize: 11, fontWeight: 500, color: cssColour("ink"), textBorderColor: cssColour("card"), textBorderWidth: 3 } })) : [],
      tooltip: hintLook(chart, describe),
      series: [{ type: "parallel", data: lines, lineStyle: { width: 1.5 }, inactiveOpacity: 0.03, activeOpacity: 0.6, smooth: false, progressive: 0, emphasis: { lineStyle: { width: 3, opacity: 1 } } }],
    };
  }

  function describe({ data: item }) {
    if (!item) return "";
    return hint(pointName(item.point), ...axes().filter(({ metric }) => metric).map(({ metric }) => `${metric.label}: ${number(metric.values[item.point])}`));
  }

  function table() {
    const used = axes();
    const points = charts.points.map((_, point) => point).filter(pointShown);
    const text = (axis, point) => (axis.parameter ? axis.parameter.levels[axis.parameter.of[point]] : axis.metric.values[point]);
    return {
      head: ["run", ...used.map((axis) => axis.name)],
      rows: points.map((point) => {
        const [sig] = sigsOf(point);
        return [{ text: sig, sig }, ...used.map((axis) => text(axis, point))];
      }),
    };
  }

  const controls = [colour, along, ...ends, apply, chosenAxes];
  const chart = addChart("parallel", "Parallel coordinates: parameters and metrics of each run", { build, table, controls });
  let redrawing = false;
  let drawn = ""; // what axes the last drawing has; areas stay on them as long as they do
  chart.keeps = () => {
    const now = JSON.stringify([isNarrow(chart), axes().map(({ name }) => name)]);
    const kept = now === drawn;
    drawn = now;
    return kept;
  };
  chosenAxes.addEventListener("change", () => {
    const before = ranges.size;
    for (const { name, box } of every) if (!box.checked) ranges.delete(name); // no filter that cannot be seen
    if (ranges.size < before) select();
  });
  chart.ready = (view) => {
    view.on("axisareaselected", ({ parallelAxisId, intervals }) => {
      if (redrawing || !parallelAxisId) return;
      ranges.set(every[Number(parallelAxisId.slice(4))].name, intervals ?? []);
      select();
    });
    view.on("click", ({ data: item }) => {
      const sigs = item?.point === undefined ? [] : sigsOf(item.point);
      if (sigs.length === 1) openRun(sigs[0]);
      else if (sigs.length) chart.pick(pointName(item.point), sigs);
    });
  };
  // Place of a value, or of the next one inside the range that a number begins (end 0) or ends (1); NaN without one.
  function levelNear({ levels }, text, end) {
    if (levels.includes(text)) return levels.indexOf(text);
    const inside = (level) => (end ? amount(level) <= amount(text) : amount(level) >= amount(text));
    const found = end ? levels.findLastIndex(inside) : levels.findIndex(inside);
    return found < 0 ? Number.NaN : found;
  }
  function redraw() {
    redrawing = true;
    chart.draw();
    showAreas(chart.view);
    redrawing = false;
    chart.draw();
  }
  apply.addEventListener("click", () => {
    const axis = every.find(({ name }) => name === along.select.value);
    const [low, high] = ends.map(({ input }, end) => {
      const text = input.value.trim();
      if (!text) return end ? Infinity : -Infinity;
      return axis.parameter ? levelNear(axis.parameter, text, end) : amount(text);
    });
    const wrong = Number.isNaN(low) || Number.isNaN(high) || (axis.parameter && low > high);
    const levels = axis.parameter?.levels ?? [];
    const some = levels.length > 12 ? `${levels[0]} to ${levels.at(-1)}` : levels.join(", ");
    const values = axis.parameter ? some : "numbers";
    chart.picked.textContent = wrong ? `${axis.name} takes: ${values}.` : "";
    if (wrong) return;
    const slack = axis.parameter ? 0.4 : 0;
    axis.box.checked = true;
    ranges.set(axis.name, [[Math.min(low, high) - slack, Math.max(low, high) + slack]]);
    redraw();
    select();
  });
  document.addEventListener("audiotok:brush", ({ detail }) => {
    const state = find("brush-state");
    state.hidden = detail.sigs === null;
    state.firstElementChild.textContent = detail.sigs === null ? "" : `${detail.sigs.length} runs are chosen in the plots.`;
    if (detail.sigs !== null) return;
    brushed = false;
    ranges.clear();
    redraw();
  });
  find("brush-state").querySelector("button").addEventListener("click", () => sendBrush(null));
}
