// Heatmap of a metric over two parameters. Each other parameter is one panel a value, held at a value, or averaged over
// because the reader chose so: none is hidden.

function startHeatmap() {
  const swept = charts.parameters.filter(({ levels }) => levels.length > 1);
  if (swept.length < 2) return;
  const MAX_PANELS = 6;
  const MEAN = "mean"; // of the choices of a parameter; values are numbers of levels
  const PANELS = "panels";
  const which = metricChoice("metric", usualMetrics()[0].name);
  const names = swept.map(({ name }) => [name, name]);
  const down = choice("down", names, swept[0].name);
  // Begin where cells are full: settings that only some conditions have leave holes.
  const filled = (...some) => new Set(charts.points.map((_, point) => some.map(({ of }) => of[point]).join())).size / some.reduce((all, { levels }) => all * levels.length, 1);
  const second = swept.slice(1).reduce((best, one) => (filled(swept[0], one) > filled(swept[0], best) ? one : best));
  const across = choice("across", names, second.name);
  // The most frequent values together: each on its own may be one that no condition has beside the others.
  const together = charts.points.map((_, point) => swept.filter((one) => one !== swept[0] && one !== second).map(({ of }) => of[point]).join());
  const times = new Map();
  for (const own of together) times.set(own, (times.get(own) ?? 0) + 1);
  const most = Math.max(...times.values());
  const common = together.findIndex((own) => times.get(own) === most);
  const usual = ({ of }) => String(of[common]);
  const others = swept.map((parameter) => {
    const some = parameter.levels.length <= MAX_PANELS ? [[PANELS, "a panel for each"]] : [];
    const wrap = choice(parameter.name, [...parameter.levels.map((text, level) => [String(level), text]), ...some, [MEAN, "mean over all"]], usual(parameter));
    wrap.parameter = parameter;
    return wrap;
  });
  const first = others.find(({ parameter }) => parameter !== swept[0] && parameter !== second && parameter.levels.length <= MAX_PANELS && filled(swept[0], second, parameter) > 0.9);
  if (first) first.select.value = PANELS;

  function cells(metric, rows, columns, held, panels, panel) {
    const sums = new Map();
    charts.points.forEach((_, point) => {
      const value = metric.values[point];
      if (value === null || held.some(([parameter, level]) => parameter.of[point] !== level)) return;
      if (panels && panels.of[point] !== panel) return;
      const place = `${columns.of[point]} ${rows.of[point]}`;
      sums.set(place, [...(sums.get(place) ?? []), value]);
    });
    return [...sums].map(([place, values]) => ({ at: place.split(" ").map(Number), n: values.length, mean: values.reduce((a, b) => a + b) / values.length, low: Math.min(...values), high: Math.max(...values) }));
  }

  function state() {
    const [rows, columns] = [down, across].map(({ select }) => swept.find(({ name }) => name === select.value));
    const rest = others.filter(({ parameter }) => parameter !== rows && parameter !== columns);
    for (const wrap of others) wrap.hidden = !rest.includes(wrap);
    const panelled = rest.filter(({ select }) => select.value === PANELS);
    for (const extra of panelled.slice(1)) extra.select.value = usual(extra.parameter); // one parameter has panels
    const panels = panelled[0]?.parameter;
    const held = rest.filter(({ select }) => ![PANELS, MEAN].includes(select.value)).map(({ parameter, select }) => [parameter, Number(select.value)]);
    const averaged = rest.filter(({ select }) => select.value === MEAN).map(({ parameter }) => parameter.name);
    const metric = metricOf(which.select.value);
    const found = (panels ? panels.levels : [""]).map((text, panel) => ({ text, cells: cells(metric, rows, columns, held, panels, panel) }));
    return { rows, columns, panels, held, averaged, metric, found };
  }

  function build(chart) {
    if (down.select.value === across.select.value) across.select.value = swept.find(({ name }) => name !== down.select.value).name;
    const { rows, columns, panels, held, averaged, metric, found } = state();
    const wide = Math.max(1, Math.min(found.length, Math.floor(chart.box.clientWidth / 320)));
    const tall = Math.ceil(found.length / wide);
    const high = Math.min(45, Math.max(10, rows.levels.length * 2.2 + 8)); // rem
    chart.box.style.height = `${tall * high}rem`;
    chart.view?.resize();
    const all = found.flatMap((panel) => panel.cells);
    const scores = all.map(({ mean }) => score(metric, mean));
    const [low, best] = [Math.min(...scores), Math.max(...scores)];
    const counts = all.map(({ n }) => n);
    const held_text = held.map(([parameter, level]) => `${parameter.name} = ${parameter.levels[level]}`);
    const over = [charts.seeds, ...averaged].join(" and over ");
    const between = counts.length ? (Math.min(...counts) === Math.max(...counts) ? `${counts[0]}` : `${Math.min(...counts)} to ${Math.max(...counts)}`) : "0";
    chart.caption.textContent = `${metric.name} over ${rows.name} and ${columns.name}`;
    chart.note.textContent = `Mean over ${over}, ${between} ${charts.things} a cell${held_text.length ? `; at ${held_text.join(", ")}` : ""}${panels ? `; a panel for each ${panels.name}` : ""}. Empty: not measured.`;
    const [from, to] = directed(metric) ? ["worse", "better"] : ["low", "high"];
    const end = (value) => (directed(metric) && metric.direction !== "higher" ? `${number(-value)}${metric.direction === "lower" ? "" : " from 0"}` : number(value));
    const ends = [[rampColour(0), `${from} (${end(low)})`], [rampColour(1), `${to} (${end(best)})`]];
    fillKey(chart, all.length ? ends.map(([colour, text]) => ({ colour, sign: "■", text })) : []);
    chart.describe(`${metric.name} over ${rows.name} and ${columns.name}. ${chart.note.textContent}`);
    const [w, h] = [100 / wide, 100 / tall];
    const at = (panel) => [(panel % wide) * w, Math.floor(panel / wide) * h];
    const place = (cell) => (best > low ? (score(metric, cell.mean) - low) / (best - low) : 1);
    const label = columns.levels.length * wide <= Math.max(4, chart.box.clientWidth / 55);
    const ink = (cell) => {
      const part = (from) => Number.parseInt(rampColour(place(cell)).slice(from, from + 2), 16);
      return 0.299 * part(1) + 0.587 * part(3) + 0.114 * part(5) > 128 ? "#000000" : "#ffffff";
    };
    const beside = rowLabels(rows.levels, 90);
    const inner = (chart.box.clientWidth * w) / 100 - beside.width - 32; // px
    const names = (parameter, panel, { texts, width, ...more }) => ({ type: "category", gridIndex: panel, data: texts, axisTick: { show: false }, axisLine: { show: false }, axisLabel: { color: cssColour("soft"), interval: "auto", width, overflow: width && "truncate" }, name: parameter.name, nameTextStyle: { color: cssColour("ink") }, ...more });
    return {
      title: found.map(({ text }, panel) => ({ text: panels ? `${panels.name} = ${text}` : "", left: `${at(panel)[0]}%`, top: `${at(panel)[1]}%`, textStyle: { fontSize: 12, fontWeight: 500, color: cssColour("ink") } })),
      grid: found.map((_, panel) => ({ left: (chart.box.clientWidth * at(panel)[0]) / 100 + beside.width + 16, width: inner, top: `${at(panel)[1] + h * (panels ? 3.2 : 2) / high}%`, height: `${h * (high - (panels ? 7.5 : 6.3)) / high}%` })),
      xAxis: found.map((_, panel) => names(columns, panel, { texts: columns.levels, width: Math.max(40, inner / columns.levels.length - 8), nameLocation: "middle", nameGap: 26 })),
      yAxis: found.map((_, panel) => names(rows, panel, { texts: beside.texts, inverse: true, nameLocation: "start", nameGap: 6, nameTextStyle: { align: "left", color: cssColour("ink") } })),
      tooltip: hintLook(chart, ({ data: { cell } }) => hint(`${columns.name} = ${columns.levels[cell.at[0]]}, ${rows.name} = ${rows.levels[cell.at[1]]}`, `${metric.label}: ${number(cell.mean)}`, `${cell.n} ${charts.things}, ${number(cell.low)} to ${number(cell.high)}`)),
      series: found.map((panel, place_) => ({ type: "heatmap", xAxisIndex: place_, yAxisIndex: place_, data: panel.cells.map((cell) => ({ value: [...cell.at, cell.mean], cell, itemStyle: { color: rampColour(place(cell)), borderColor: cssColour("card"), borderWidth: 1 }, label: { show: label, color: ink(cell), formatter: () => number(Number(cell.mean.toPrecision(3))) } })) })),
    };
  }

  function table() {
    const { rows, columns, panels, metric, found } = state();
    return {
      head: [...(panels ? [panels.name] : []), rows.name, columns.name, metric.label, "n", "lowest", "highest"],
      rows: found.flatMap(({ text, cells: list }) => list.map((cell) => [...(panels ? [text] : []), rows.levels[cell.at[1]], columns.levels[cell.at[0]], cell.mean, cell.n, cell.low, cell.high])),
    };
  }

  addChart("heatmap", "Heatmap", { build, table, controls: [which, down, across, ...others] });
}
