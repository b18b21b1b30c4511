// Curves of a metric over epochs, or of usage over codebooks: the means of the k best conditions in colour with their
// range, the rest in grey; in one panel, or in one for each value of a parameter.

function startCurves() {
  if (!charts.curves.length) return;
  const MAX_PANELS = 12;
  const first = charts.curves.find((curve) => directed(curve) && curve.name.startsWith("valid.")) ?? charts.curves[0];
  const what = choice("metric", charts.curves.map((curve) => [curve.name + curve.axis, curve.name + arrowOf(curve) + (curve.axis === "epoch" ? "" : ` by ${curve.axis}`)]), first.name + first.axis);
  const best = choice("in colour", [["3", "the 3 best"], ["6", "the 6 best"], ["12", "the 12 best"], ["0", "none"]], "6");
  const splitting = charts.parameters.filter(({ levels }) => levels.length > 1 && levels.length <= MAX_PANELS);
  const panels = choice("panels", [["", "one"], ...splitting.map(({ name }) => [name, `for each ${name}`])]);
  const chosen = () => charts.curves.find((curve) => curve.name + curve.axis === what.select.value);
  const runsOf = new Map();
  charts.run_condition.forEach((condition, run) => runsOf.set(condition, [...(runsOf.get(condition) ?? []), run]));
  const levelOf = (parameter, condition) => parameter.of[membersOf(condition)[0]];
  const made = new Map(); // curves of conditions, worked out once for each metric

  function conditionsOf(curve) {
    if (made.has(curve)) return made.get(curve);
    const found = [...runsOf].flatMap(([condition, runs]) => {
      const columns = curve.x.map((_, place) => runs.map((run) => curve.values[run][place]).filter((value) => value !== null));
      const points = columns.flatMap((values, place) => {
        if (!values.length) return [];
        const mean = values.reduce((a, b) => a + b) / values.length;
        return [{ x: curve.x[place], mean, low: Math.min(...values), high: Math.max(...values) }];
      });
      return points.length ? [{ condition, runs, points, last: points.at(-1).mean }] : [];
    });
    found.sort((a, b) => score(curve, b.last) - score(curve, a.last));
    made.set(curve, found);
    return found;
  }
  const seen = ({ runs }) => runs.some((run) => runShown(charts.runs[run]));

  function build(chart) {
    const curve = chosen();
    const all = conditionsOf(curve).filter(seen);
    const parameter = splitting.find(({ name }) => name === panels.select.value);
    const levels = parameter ? parameter.levels : [""];
    const wide = Math.max(1, Math.min(levels.length, Math.floor(chart.box.clientWidth / 300)));
    const tall = Math.ceil(levels.length / wide);
    chart.box.style.height = tall > 1 ? `${16 * tall}rem` : "";
    chart.view?.resize();
    const wanted = directed(curve) || all.length <= COLOURS.length ? Number(best.select.value) : 0;
    const coloured = all.slice(0, wanted);
    const [grid, xAxis, yAxis, series, title] = [[], [], [], [], []];
    const ends = all.reduce(([low, high], { points }) => points.reduce(([a, b], { low: l, high: h }) => [Math.min(a, l), Math.max(b, h)], [low, high]), [Infinity, -Infinity]);
    chart.panels = levels.map((level, place) => {
      const inside = all.filter(({ condition }) => !parameter || levelOf(parameter, condition) === place);
      const [column, row] = [place % wide, Math.floor(place / wide)];
      const [w, h] = [100 / wide, 100 / tall];
      grid.push({ left: `${column * w + 0.5}%`, width: (chart.box.clientWidth * w) / 100 - 22, top: `${row * h + 10 / tall}%`, height: `${h - 17 / tall}%`, containLabel: true });
      xAxis.push(axisLook(row === tall - 1 || parameter ? curve.axis : "", { gridIndex: place, type: "value", nameLocation: "middle", nameGap: 24, minInterval: 1, min: curve.x[0], max: curve.x.at(-1) === curve.x[0] ? curve.x[0] + 1 : curve.x.at(-1), splitLine: { show: false } }));
      yAxis.push(axisLook("", { gridIndex: place, type: "value", ...(parameter ? { min: ends[0], max: ends[1],  } : {}) }));
      title.push({ text: parameter ? `${parameter.name} = ${level}` : axisName(chart, curve), left: `${column * w + 0.5}%`, top: `${row * h}%`, textStyle: { fontSize: 12, fontWeight: 500, color: cssColour("ink") } });
      const rest = inside.filter((one) => !coloured.includes(one)).flatMap(({ points }) => [...points.map(({ x, mean }) => [x, mean]), [null, null]]);
      series.push({ type: "line", xAxisIndex: place, yAxisIndex: place, data: rest, symbol: "none", silent: true, connectNulls: false, lineStyle: { color: cssColour("soft"), width: 1, opacity: Math.max(0.2, Math.min(0.6, 40 / all.length)) }, z: 1 });
      coloured.forEach((one, rank) => inside.includes(one) && series.push(...colouredLine(one, rank, place)));
      series.push({ id: `near${place}`, type: "line", xAxisIndex: place, yAxisIndex: place, data: [], symbol: "none", silent: true, lineStyle: { color: cssColour("ink"), width: 2.5 }, z: 9 });
      return inside;
    });
    const listed = coloured.map(({ condition }, rank) => ({ colour: paint(rank), sign: mark(rank)[1], text: charts.conditions[condition] }));
    if (all.length > coloured.length) listed.push({ colour: cssColour("soft"), sign: "━", text: `the other ${all.length - coloured.length}` });
    fillKey(chart, listed);
    const repeated = all.some(({ runs }) => runs.length > 1);
    chart.caption.textContent = `Curves: ${curve.name} over ${curve.axis}s`;
    chart.note.textContent = `${repeated ? `Mean over ${charts.seeds}, of the coloured ones with the range of their runs. ` : ""}${wanted ? `In colour: the best by the last value.` : "No best: the metric has no better direction, or none was asked for."}`;
    chart.describe(`${curve.name} over ${curve.axis}s of ${all.length} conditions. Best at the end: ${coloured.slice(0, 3).map(({ condition, last }) => `${charts.conditions[condition]} (${number(last)})`).join("; ")}.`);
    return { grid, xAxis, yAxis, series, title, tooltip: { show: false } };
  }

  function colouredLine({ points, runs }, rank, place) {
    const axis = { xAxisIndex: place, yAxisIndex: place, symbol: "none", silent: true };
    const colour = paint(rank);
    const every = Math.ceil(points.length / 6);
    const line = { ...axis, type: "line", data: points.map(({ x, mean }) => [x, mean]), symbol: (_, { dataIndex }) => (dataIndex % every && dataIndex !== points.length - 1 ? "none" : mark(rank)[0]), showAllSymbol: true, symbolSize: 7, lineStyle: { color: colour, width: 2 }, itemStyle: { color: colour }, z: 4 };
    if (runs.length < 2) return [line];
    const outline = [...points.map(({ x, high }) => [x, high]), ...points.toReversed().map(({ x, low }) => [x, low])];
    const renderItem = (_, api) => ({ type: "polygon", shape: { points: outline.map((point) => api.coord(point)) }, style: { fill: colour, opacity: 0.15 } });
    return [{ type: "custom", xAxisIndex: place, yAxisIndex: place, silent: true, clip: true, data: [[points[0].x, points[0].mean]], renderItem, z: 2 }, line];
  }

  // The curve nearest to the pointer: 25 px away at most.
  function nearest(chart, x, y) {
    const place = chart.panels.findIndex((_, index) => chart.view.containPixel({ gridIndex: index }, [x, y]));
    if (place < 0) return null;
    const found = { place, distance: 25 };
    const pixel = (point) => chart.view.convertToPixel({ gridIndex: place }, point);
    const [origin, unit] = [pixel([0, 0]), pixel([1, 1])];
    for (const one of chart.panels[place]) {
      let last = null;
      for (const { x: epoch, mean } of one.points) {
        const here = [origin[0] + (unit[0] - origin[0]) * epoch, origin[1] + (unit[1] - origin[1]) * mean];
        const distance = last ? toSegment([x, y], last, here) : Math.hypot(here[0] - x, here[1] - y);
        if (distance < found.distance) Object.assign(found, { one, distance });
        last = here;
      }
    }
    return found.one ? found : null;
  }

  function table() {
    const curve = chosen();
    return {
      head: ["condition", "n", `first (${curve.axis})`, "value", `last (${curve.axis})`, "value", "lowest", "highest"],
      rows: conditionsOf(curve).filter(seen).map(({ condition, runs, points }) => {
        const [first, last] = [points[0], points.at(-1)];
        return [charts.conditions[condition], runs.length, first.x, first.mean, last.x, last.mean, last.low, last.high];
      }),
    };
  }

  const chart = addChart("curves", "Curves", { build, table, controls: [what, best, panels] });
  const bubble = make("div");
  bubble.className = "bubble";
  bubble.hidden = true;
  chart.ready = (view) => {
    chart.box.append(bubble);
    const show = (found, x, y) => {
      const points = found ? found.one.points.map(({ x, mean }) => [x, mean]) : [];
      view.setOption({ series: chart.panels.map((_, place) => ({ id: `near${place}`, data: found?.place === place ? points : [] })) });
      bubble.hidden = !found;
      if (!found) return;
      const { condition, runs, last } = found.one;
      const sigs = runs.map((run) => charts.runs[run]);
      bubble.replaceChildren(hint(charts.conditions[condition], sigs.length > 4 ? `${sigs.length} runs` : sigs.join(", "), `last: ${number(last)}`));
      bubble.style.left = `${Math.min(x + 14, chart.box.clientWidth - bubble.offsetWidth)}px`;
      bubble.style.top = `${y + 14}px`;
    };
    view.getZr().on("mousemove", ({ offsetX, offsetY }) => show(nearest(chart, offsetX, offsetY), offsetX, offsetY));
    view.getZr().on("globalout", () => show(null));
    view.getZr().on("click", ({ offsetX, offsetY }) => {
      const found = nearest(chart, offsetX, offsetY);
      if (!found) return;
      const sigs = found.one.runs.map((run) => charts.runs[run]);
      if (sigs.length === 1) openRun(sigs[0]);
      else chart.pick(charts.conditions[found.one.condition], sigs);
    });
  };
}

function toSegment([x, y], [x1, y1], [x2, y2]) {
  const [dx, dy] = [x2 - x1, y2 - y1];
  const along = Math.min(Math.max(((x - x1) * dx + (y - y1) * dy) / (dx * dx + dy * dy || 1), 0), 1);
  return Math.hypot(x1 + along * dx - x, y1 + along * dy - y);
}
