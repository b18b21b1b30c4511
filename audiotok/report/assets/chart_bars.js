// Means of conditions with their intervals, and how much of a metric's spread each parameter explains.

const intervalMark = (half) => (params, api) => {
  const [low, high, place] = [api.value(0), api.value(1), api.value(2)];
  if (!Number.isFinite(low) || !Number.isFinite(high)) return undefined;
  const [[x1, y], [x2]] = [api.coord([low, place]), api.coord([high, place])];
  const style = { stroke: api.visual("color"), lineWidth: 2 };
  const line = (shape) => ({ type: "line", shape, style });
  return { type: "group", children: [line({ x1, x2, y1: y, y2: y }), ...[x1, x2].map((x) => line({ x1: x, x2: x, y1: y - half, y2: y + half }))] };
};

const BELOW = 54; // px: the numbers and the name of the axis

function startBars() {
  startMeans();
  startImportance();
}

function startMeans() {
  if (charts.conditions.length < 2) return;
  const ROWS = 15; // in sight at once; the rest scrolls
  const which = metricChoice("metric", usualMetrics()[0].name);
  const chosen = () => metricOf(which.select.value);
  const order = (metric) =>
    charts.conditions.map((_, c) => c).filter((c) => metric.mean[c] !== null && conditionShown(c))
      .sort((a, b) => score(metric, metric.mean[b]) - score(metric, metric.mean[a]));

  function build(chart) {
    const metric = chosen();
    const rows = order(metric);
    const size = isNarrow(chart) ? 10 : 12;
    const labels = rowLabels(rows.map((c) => charts.conditions[c]), 0.42 * chart.box.clientWidth, size);
    const line = (labels.lines * (size + 3) + 9) / 16; // rem
    chart.box.style.height = `${Math.min(rows.length, ROWS) * line + 5}rem`;
    chart.view?.resize();
    const colour = paint(0);
    const more = rows.length > ROWS;
    chart.caption.textContent = `Means of ${metric.name} with 95 % intervals`;
    chart.note.textContent = `${rows.length} conditions${directed(metric) ? ", the best first" : ""}; mean over ${charts.seeds} and Student's interval, none where n is 1.${more ? " The bar at the right scrolls." : ""}`;
    chart.describe(`${metric.name} of ${rows.length} conditions. ${rows.slice(0, 3).map((c) => `${charts.conditions[c]}: ${number(metric.mean[c])}`).join("; ")}.`);
    return {
      grid: { left: labels.width + 16, right: more ? 46 : 16, top: 8, bottom: BELOW },
      xAxis: axisLook(axisName(chart, metric), { type: "value", nameLocation: "middle", nameGap: 26 }),
      yAxis: { type: "category", inverse: true, data: labels.texts, axisLabel: { color: cssColour("ink"), fontSize: size, lineHeight: size + 3, interval: 0 }, axisLine: { show: false }, axisTick: { show: false } },
      dataZoom: more ? [{ type: "slider", yAxisIndex: 0, startValue: 0, endValue: ROWS - 1, right: 6, width: 22, showDetail: false, showDataShadow: false, brushSelect: false, borderColor: cssColour("line"), fillerColor: "transparent", handleStyle: { color: cssColour("accent") } }] : [],
      tooltip: hintLook(chart, describe),
      series: [
        { type: "custom", silent: true, renderItem: intervalMark(4), encode: { x: [0, 1], y: 2 }, itemStyle: { color: colour }, data: rows.map((c, place) => [metric.low[c] ?? Number.NaN, metric.high[c] ?? Number.NaN, place]) },
        { type: "scatter", symbolSize: 10, itemStyle: { color: colour }, data: rows.map((c, place) => ({ value: [metric.mean[c], place], condition: c })) },
      ],
    };
  }

  function describe({ data: { condition: c } }) {
    const metric = chosen();
    const interval = metric.low[c] === null ? "" : ` (${number(metric.low[c])} to ${number(metric.high[c])})`;
    return hint(charts.conditions[c], `${number(metric.mean[c])}${interval}`, `n = ${metric.n[c]} ${charts.things}`);
  }

  function table() {
    const metric = chosen();
    return { head: ["condition", "n", metric.label, "low", "high"], rows: order(metric).map((c) => [charts.conditions[c], metric.n[c], metric.mean[c], metric.low[c], metric.high[c]]) };
  }

  const chart = addChart("means", "Means", { build, table, controls: [which] });
  chart.ready = (view) => view.on("click", ({ data: item }) => item?.condition !== undefined && chart.pick(charts.conditions[item.condition], membersOf(item.condition).flatMap(sigsOf)));
}

function startImportance() {
  if (!charts.importance.length) return;
  const usable = charts.importance.filter(({ rows }) => rows.length);
  const first = usualMetrics().flatMap(({ name }) => usable.find(({ metric }) => metric === name) ?? [])[0] ?? charts.importance[0];
  const which = metricChoice("metric", first.metric, charts.importance.map(({ metric }) => metricOf(metric)));
  const chosen = () => charts.importance.find(({ metric }) => metric === which.select.value);
  const percent = (value) => (value === null ? "–" : `${number(100 * value)} %`);
  const meaning = "Main effects: what leaving the parameter out of an additive model costs, of the spread of the metric (epsilon squared), with 95 % intervals from the noncentral F distribution. The rest is interactions and noise. Shares are of the values in this grid; they say neither which value is best nor, of parameters that change together, which one it is.";

  function build(chart) {
    const { rows, note, metric, runs } = chosen();
    const labels = rowLabels(rows.map(([name]) => name), 0.42 * chart.box.clientWidth);
    chart.box.style.height = `${rows.length * 2 + 5}rem`;
    chart.view?.resize();
    const shares = rows.map(([, share], place) => ({ value: share, itemStyle: { color: place === rows.length - 1 ? cssColour("strong-line") : paint(0) } }));
    chart.caption.textContent = `Importance of the parameters for ${metric}`;
    chart.note.textContent = note || `${meaning} Over ${runs} ${charts.things}.`;
    chart.describe(note || `Share of the spread of ${metric}: ${rows.map(([name, share]) => `${name} ${percent(share)}`).join("; ")}.`);
    return {
      grid: { left: labels.width + 16, right: 24, top: 8, bottom: BELOW },
      xAxis: axisLook("share of the spread", { type: "value", min: 0, max: 1, interval: isNarrow(chart) ? 0.5 : 0.2, nameLocation: "middle", nameGap: 26, axisLabel: { color: cssColour("soft"), formatter: (value) => `${Math.round(100 * value)} %` } }),
      yAxis: { type: "category", inverse: true, data: labels.texts, axisLabel: { color: cssColour("ink"), interval: 0 }, axisLine: { show: false }, axisTick: { show: false } },
      tooltip: hintLook(chart, ({ dataIndex }) => hint(...texts(rows[dataIndex]))),
      series: [
        { type: "bar", data: shares, barWidth: "55%" },
        { type: "custom", silent: true, renderItem: intervalMark(5), encode: { x: [0, 1], y: 2 }, itemStyle: { color: cssColour("ink") }, z: 3, data: rows.map(([, , low, high], place) => [low ?? Number.NaN, high ?? Number.NaN, place]) },
      ],
    };
  }

  const texts = ([name, share, low, high, p]) =>
    share === null ? [name, "cannot be told apart from the others"] : [name, low === null ? percent(share) : `${percent(share)} (${percent(low)} to ${percent(high)})`, ...(p === null ? [] : [`p ${p < 0.001 ? "< 0.001" : `= ${number(p)}`}`])];
  const table = () => ({ head: ["parameter", "share", "low", "high", "p of no effect"], rows: chosen().rows.map(([name, share, low, high, p]) => [name, percent(share), percent(low), percent(high), p]) });
  addChart("importance", "Importance of the parameters", { build, table, low: true, controls: [which] });
}
