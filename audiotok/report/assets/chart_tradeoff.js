// Trade-off of two metrics: a small mark for each run, a large one with its interval for each mean over seeds, and the
// front of means. A front of single runs would be one of luck.

function frontOf(x, y, all) {
  if (!directed(x) || !directed(y)) return [];
  const runsOf = (condition) => Math.min(x.n[condition], y.n[condition]);
  const repeated = all.some((condition) => runsOf(condition) > 1);
  const conditions = all.filter((condition) => !repeated || runsOf(condition) > 1); // one run is no mean
  const value = (condition) => [score(x, x.mean[condition]), score(y, y.mean[condition])];
  const sorted = conditions
    .filter((condition) => x.mean[condition] !== null && y.mean[condition] !== null)
    .sort((a, b) => value(b)[0] - value(a)[0] || value(b)[1] - value(a)[1]);
  const front = [];
  let best = [-Infinity, -Infinity];
  for (const condition of sorted) {
    const [first, second] = value(condition);
    if (second > best[1] || (second === best[1] && first === best[0])) {
      front.push(condition);
      best = [first, second];
    }
  }
  return front;
}

function startTradeoff() {
  if (charts.metrics.length < 2) return;
  const start = charts.axes.map((place, axis) => charts.metrics[place >= 0 ? place : axis].name);
  if (start[0] === start[1]) start[1] = charts.metrics.find((metric) => metric.name !== start[0]).name;
  const across = metricChoice("across", start[0]);
  const up = metricChoice("up", start[1]);
  const byParameter = charts.parameters.map((parameter, place) => [String(place), parameter.name]);
  const colours = choice("colours", [["", "conditions, or the front of many"], ...byParameter]);
  const conditions = charts.conditions.map((_, condition) => condition);
  const picked = () => [metricOf(across.select.value), metricOf(up.select.value)];

  // What sets a condition apart: {colour, mark} by condition, and the entries of the key.
  function looks(front) {
    const grey = cssColour("soft");
    const found = new Map();
    const parameter = charts.parameters[Number(colours.select.value)];
    if (colours.select.value !== "" && parameter) {
      const steps = Math.max(1, parameter.levels.length - 1);
      const look = (level) => ({ colour: rampColour(level / steps), sign: mark(level) });
      for (const condition of conditions) found.set(condition, look(parameter.of[membersOf(condition)[0]]));
      const every = Math.ceil(parameter.levels.length / 12); // of hundreds of values, as of a random search
      const listed = parameter.levels.map((text, level) => ({ ...look(level), text: `${parameter.name} = ${text}` }));
      return [found, listed.filter((_, level) => level % every === 0).map((entry) => ({ ...entry, sign: entry.sign[1] }))];
    }
    const named = charts.conditions.length <= COLOURS.length ? conditions : front;
    named.forEach((condition, place) => found.set(condition, { colour: paint(place), sign: mark(place) }));
    const listed = named.slice(0, 12).map((condition) => ({
      colour: found.get(condition).colour, sign: found.get(condition).sign[1], text: charts.conditions[condition],
    }));
    if (named.length > 12) listed.push({ colour: grey, sign: "…", text: `${named.length - 12} more` });
    if (named.length < conditions.length) listed.push({ colour: grey, sign: "●", text: `the other ${conditions.length - named.length}` });
    return [found, listed];
  }

  function build(chart) {
    const [x, y] = picked();
    const front = frontOf(x, y, conditions);
    const [found, listed] = looks(front);
    const grey = { colour: cssColour("soft"), sign: MARKS[0] };
    const look = (condition) => found.get(condition) ?? grey;
    const single = charts.things === "runs" ? "run" : "codec";
    const runs = charts.points.flatMap((_, point) => {
      if (!pointShown(point) || x.values[point] === null || y.values[point] === null) return [];
      const { colour, sign } = look(charts.condition[point]);
      return [{ value: [x.values[point], y.values[point]], point, symbol: sign[0], itemStyle: { color: colour, opacity: 0.45 } }];
    });
    const repeated = charts.condition.length > conditions.length;
    const means = conditions.flatMap((condition) => {
      if (!repeated || !conditionShown(condition) || x.mean[condition] === null || y.mean[condition] === null) return [];
      const { colour, sign } = look(condition);
      const value = [x.mean[condition], y.mean[condition], x.low[condition], x.high[condition], y.low[condition], y.high[condition]];
      const faint = found.has(condition) ? 1 : 0.55;
      return [{ value, condition, symbol: sign[0], itemStyle: { color: colour, opacity: faint, borderColor: cssColour("card"), borderWidth: 1 } }];
    });
    const crosses = means.filter(({ condition }) => found.has(condition) && (front.includes(condition) || conditions.length <= COLOURS.length));
    const [wide, tall] = [0, 1].map((axis) => reach([...runs, ...means].map(({ value }) => value[axis]), crosses.flatMap(({ value }) => value.slice(2 + 2 * axis, 4 + 2 * axis))));
    fillKey(chart, listed);
    const names = front.map((condition) => charts.conditions[condition]);
    chart.note.textContent =
      `${runs.length} ${single}s (small)${repeated ? `, ${means.length} means over ${charts.seeds} (large) with Student's 95 % intervals` : ""}` +
      (front.length ? `; line: the front, conditions whose mean no other beats in both${repeated ? "; one run alone is no mean, and not on it" : ""}.` : "; no front: one of the metrics has no better direction.") +
      (wide.cut || tall.cut ? " An interval that reaches the edge goes on beyond it." : "");
    chart.caption.textContent = `Trade-off: ${y.name} against ${x.name}`;
    chart.describe(`${y.name} against ${x.name}: ${runs.length} ${single}s of ${conditions.length} conditions. On the front of means: ${names.slice(0, 8).join("; ") || "none"}.`);
    const line = front.filter((condition) => repeated ? conditionShown(condition) : true).map((c) => [x.mean[c], y.mean[c]]);
    const axisLine = { lineStyle: { color: cssColour("strong-line") }, onZero: false }; // at the edge
    return {
      grid: { left: 12, right: 36, top: 34, bottom: 30, containLabel: true },
      xAxis: axisLook(axisName(chart, x), { type: "value", nameLocation: "middle", nameGap: 30, axisLine }),
      yAxis: axisLook(axisName(chart, y), { type: "value", nameTextStyle: { align: "left", color: cssColour("ink") }, axisLine }),
      tooltip: hintLook(chart, describe),
      series: [
        { type: "line", data: line, symbol: "none", silent: true, lineStyle: { color: cssColour("soft"), width: 1.5 }, z: 1 },
        { type: "custom", data: crosses.map(({ value, itemStyle }) => ({ value: [...value, ...wide.ends, ...tall.ends], itemStyle })), encode: { x: [0, 6, 7], y: [1, 8, 9] }, renderItem: cross, silent: true, z: 2 },
        { type: "scatter", name: "runs", data: runs, symbolSize: 6, z: 3 },
        { type: "scatter", name: "means", data: means, symbolSize: (_, { data: { condition } }) => (found.has(condition) ? 13 : 9), z: 4 },
      ],
    };
  }

  // How far an axis goes beyond its marks for the ends of intervals: by half of what the marks take, not more, as an interval
  // of two runs is thirteen times its error; not at all for many conditions, whose marks need the room.
  function reach(marks, intervals) {
    const least = (values, start) => values.reduce((a, b) => Math.min(a, b), start);
    const most = (values, start) => values.reduce((a, b) => Math.max(a, b), start);
    const [low, high] = [least(marks, Infinity), most(marks, -Infinity)];
    const found = intervals.filter(Number.isFinite);
    const [from, to] = [least(found, low), most(found, high)];
    const more = conditions.length <= COLOURS.length ? (high - low) / 2 : 0;
    const ends = [Math.max(from, low - more), Math.min(to, high + more)];
    return { ends, cut: from < ends[0] || to > ends[1] };
  }

  function describe({ data: item }) {
    const [x, y] = picked();
    if (item.point !== undefined) return hint(pointName(item.point), `${x.label}: ${number(x.values[item.point])}`, `${y.label}: ${number(y.values[item.point])}`);
    const c = item.condition;
    const text = (metric) => `${metric.label}: ${number(metric.mean[c])}${metric.low[c] === null ? "" : ` (${number(metric.low[c])} to ${number(metric.high[c])})`}`;
    return hint(charts.conditions[c], `mean of ${y.n[c]} ${charts.things}`, text(x), text(y));
  }

  function cross(params, api) {
    const [, , left, right, low, high] = [0, 1, 2, 3, 4, 5].map((place) => api.value(place));
    const { coordSys: box } = params;
    const clamp = ([a, b]) => [Math.min(Math.max(a, box.x), box.x + box.width), Math.min(Math.max(b, box.y), box.y + box.height)];
    const stroke = (from, to) => {
      const [[x1, y1], [x2, y2]] = [clamp(api.coord(from)), clamp(api.coord(to))];
      return { type: "line", shape: { x1, y1, x2, y2 }, style: { stroke: api.visual("color"), lineWidth: 1, opacity: 0.6 } };
    };
    const children = [];
    if (Number.isFinite(left)) children.push(stroke([left, api.value(1)], [right, api.value(1)]));
    if (Number.isFinite(low)) children.push(stroke([api.value(0), low], [api.value(0), high]));
    return { type: "group", children };
  }

  function table() {
    const [x, y] = picked();
    const front = frontOf(x, y, conditions);
    const rows = [...conditions].sort((a, b) => front.includes(b) - front.includes(a) || (score(y, y.mean[b]) - score(y, y.mean[a])));
    const cells = (metric, c) => [metric.mean[c], metric.low[c] === null ? "–" : `${number(metric.low[c])} to ${number(metric.high[c])}`];
    return {
      head: ["condition", "n", x.label, "95 % interval", y.label, "95 % interval", "on the front"],
      rows: rows.map((c) => [charts.conditions[c], y.n[c], ...cells(x, c), ...cells(y, c), front.includes(c) ? "yes" : ""]),
    };
  }

  const chart = addChart("tradeoff", "Trade-off", { build, table, controls: [across, up, colours] });
  chart.ready = (view) =>
    view.on("click", ({ data: item }) => {
      if (item?.condition !== undefined) return chart.pick(charts.conditions[item.condition], membersOf(item.condition).flatMap(sigsOf));
      const sigs = item?.point === undefined ? [] : sigsOf(item.point);
      if (sigs.length === 1) openRun(sigs[0]);
      else if (sigs.length) chart.pick(pointName(item.point), sigs);
    });
}
