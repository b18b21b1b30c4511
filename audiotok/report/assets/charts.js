// What the charts share: frames with controls, colours of the page, keys, hints, tables, and which runs are shown.
// Apache ECharts draws; texts of files reach the page through textContent alone, so every hint is an element.

const charts = data.charts;
const DOWN = "path://M-3,-3L3,-3L0,3Z";
const PLUS = "path://M-1,-3L1,-3L1,-1L3,-1L3,1L1,1L1,3L-1,3L-1,1L-3,1L-3,-1L-1,-1Z";
const MARKS = [["circle", "●"], ["rect", "■"], ["diamond", "◆"], ["triangle", "▲"], [PLUS, "✚"], [DOWN, "▼"], ["roundRect", "▮"]];
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];
const DARK_COLOURS = { "#0072b2": "#4a9fe0" }; // the others can be read on both
// Worse to better, whichever way a metric goes: what is better stands out of the page more.
const SCALES = {
  light: ["#dccb74", "#93b878", "#3f9a8a", "#2a6a9a", "#2b1d5c"],
  dark: ["#45426e", "#2f6f95", "#3da68d", "#9cc45a", "#f5e663"],
};
const allCharts = [];
let chartSigs = null; // null: all
let brushed = false;

const cssColour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
const root = document.documentElement;
const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches && !root.classList.contains("paper");
const scaleColours = () => SCALES[isDark() ? "dark" : "light"];
const paint = (place) => {
  const colour = COLOURS[place % COLOURS.length];
  return (isDark() && DARK_COLOURS[colour]) || colour;
};
const mark = (place) => MARKS[place % MARKS.length];
const number = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(4))).replace("-", "−"));
const ARROWS = { higher: " ↑", lower: " ↓", near_zero: " →0" };
const arrowOf = ({ direction }) => ARROWS[direction] ?? "";
// The metrics that a chart begins with: quality, then dependence, then any with a better direction.
const usualMetrics = () => [...[...charts.axes].reverse().flatMap((place) => charts.metrics[place] ?? []), ...charts.metrics.filter(directed), ...charts.metrics];
const metricOf = (name) => charts.metrics.find((metric) => metric.name === name);
const directed = (metric) => metric.direction !== "neutral";
const score = (metric, value) =>
  metric.direction === "lower" ? -value : metric.direction === "near_zero" ? -Math.abs(value) : value;
const sigsOf = (point) => charts.points[point].map((run) => charts.runs[run]);
const runShown = (sig) => chartSigs === null || chartSigs.has(sig);
const pointShown = (point) => sigsOf(point).some(runShown);
const pointName = (point) => {
  const sigs = sigsOf(point);
  return sigs.length === 1 ? runName(sigs[0]) : `${charts.conditions[charts.condition[point]]} · ${sigs.length} runs`;
};
let conditionPoints = null;
function membersOf(condition) {
  if (!conditionPoints) {
    conditionPoints = charts.conditions.map(() => []);
    charts.condition.forEach((each, point) => conditionPoints[each].push(point));
  }
  return conditionPoints[condition];
}
const conditionShown = (condition) => membersOf(condition).some(pointShown);
const openRun = (sig) => runPage(sig) && location.assign(runPage(sig));

// Colour at a place from 0 to 1 of the scale.
function rampColour(place) {
  const scale = scaleColours();
  const scaled = Math.min(Math.max(place, 0), 1) * (scale.length - 1);
  const low = Math.min(Math.floor(scaled), scale.length - 2);
  const part = (colour, at) => Number.parseInt(colour.slice(at, at + 2), 16);
  const mix = [1, 3, 5].map((at) => Math.round(part(scale[low], at) + (part(scale[low + 1], at) - part(scale[low], at)) * (scaled - low)));
  return `#${mix.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

function hint(...lines) {
  const box = make("div", "hint");
  for (const line of lines) box.append(make("p", "", line));
  return box;
}

const isNarrow = ({ box }) => box.clientWidth < 640;
const axisName = (chart, metric) => (isNarrow(chart) ? metric.name + arrowOf(metric) : metric.label);
const plainAxis = (value) => number(Number(value.toPrecision(10)));

// Labels of rows beside a chart: texts in lines of at most `most` pixels, broken between their parts, and the widest.
const ruler = document.createElement("canvas").getContext("2d");
function rowLabels(texts, most, size = 12) {
  ruler.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
  const wide = (text) => ruler.measureText(text).width;
  const cut = (text) => {
    let end = text.length;
    while (end > 1 && wide(`${text.slice(0, end)}…`) > most) end -= 1;
    return `${text.slice(0, end)}…`;
  };
  const lines = texts.map((text) => text.replace(/([,:]) /g, "$1\n").split("\n").reduce((done, part) => {
    const joined = done.length ? `${done.at(-1)} ${part}` : part;
    if (wide(joined) <= most) return [...done.slice(0, -1), joined];
    return [...done, wide(part) <= most ? part : cut(part)];
  }, []));
  return { texts: lines.map((own) => own.join("\n")), lines: Math.max(1, ...lines.map((own) => own.length)), width: Math.ceil(Math.max(0, ...lines.flat().map(wide))) };
}

// What every chart shows of the thing under the pointer: an element of texts.
const hintLook = (chart, formatter) => ({
  trigger: "item", appendTo: chart.box, confine: true, padding: 0, borderWidth: 0, backgroundColor: "transparent", formatter,
});

function axisLook(name, more = {}) {
  const line = { lineStyle: { color: cssColour("strong-line") } };
  return {
    name, nameTextStyle: { color: cssColour("ink") }, axisLine: line, axisTick: line, scale: true,
    axisLabel: { color: cssColour("soft"), hideOverlap: true, formatter: plainAxis }, splitLine: { lineStyle: { color: cssColour("line") } }, ...more,
  };
}

// `chart.ready(view)` adds what listens to the pointer, `chart.keeps()` says whether a drawing goes on from the last one.
// A frame: title, controls, drawing, key, note and table. `build(view)` gives what ECharts draws; `table()` its numbers.
function addChart(id, title, { build, table, low = false, controls = [] }) {
  const frame = make("figure", "chart");
  frame.id = `chart-${id}`;
  const form = make("form", "controls");
  form.append(...controls);
  const box = make("div", low ? "canvas low" : "canvas");
  const rows = make("details");
  const holder = make("div", "scroller");
  rows.append(make("summary", "", "As a table"), holder);
  holder.tabIndex = 0;
  holder.setAttribute("role", "region");
  holder.setAttribute("aria-label", `${title}, as a table`);
  const caption = make("figcaption", "", title);
  const parts = { key: make("ul", "key"), note: make("p", "legend"), picked: make("p", "picked") };
  parts.picked.setAttribute("role", "status");
  box.setAttribute("role", "img");
  frame.append(caption, form, box, parts.key, parts.note, parts.picked, rows);
  find("charts").append(frame);
  const chart = { id, frame, box, caption, form, view: null, near: false, stale: true, ...parts };
  chart.describe = (text) => box.setAttribute("aria-label", text);
  // Draws what is in sight, or will be on paper; what is not, when it comes into view.
  chart.draw = (always = false) => {
    chart.stale = !chart.near && !always;
    box.setAttribute("aria-busy", chart.stale);
    if (chart.stale) return;
    chart.view ??= chart.start();
    const option = build(chart);
    chart.view.resize();
    chart.view.setOption({ animation: false, textStyle: { color: cssColour("ink"), fontFamily: getComputedStyle(document.body).fontFamily }, ...option }, { notMerge: !chart.keeps?.() });
    box.style.aspectRatio = `${box.clientWidth} / ${box.clientHeight}`; // which a narrower sheet of paper keeps
    if (rows.open) fillTable(holder, table());
  };
  chart.start = () => {
    const view = echarts.init(box, null, { renderer: "canvas", locale: "EN", devicePixelRatio: Math.max(2, devicePixelRatio) });
    chart.ready?.(view);
    return view;
  };
  chart.pick = (text, sigs) => {
    chart.picked.replaceChildren(make("span", "", `${text}: `));
    chart.picked.append(...sigs.map((sig) => runLink(sig)));
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", () => chart.draw());
  rows.addEventListener("toggle", () => rows.open && fillTable(holder, table()));
  allCharts.push(chart);
  return chart;
}

function choice(label, pairs, value) {
  const wrap = make("label", "", label);
  const select = make("select");
  options(select, pairs);
  select.setAttribute("aria-label", label);
  if (value !== undefined) select.value = value;
  wrap.append(select);
  wrap.select = select;
  return wrap;
}

function metricChoice(label, value, allowed = charts.metrics) {
  return choice(label, allowed.map((metric) => [metric.name, metric.name + arrowOf(metric)]), value ?? allowed[0]?.name);
}

// Cells are texts, or {text, sig} for a link to a run.
function fillTable(holder, { head, rows }) {
  const table = make("table");
  const top = table.createTHead().insertRow();
  for (const text of head) {
    const cell = make("th", "", text);
    cell.scope = "col";
    top.append(cell);
  }
  const body = table.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const cell of row) {
      const place = line.insertCell();
      if (cell?.sig) place.append(runLink(cell.sig, cell.text));
      else place.textContent = typeof cell === "number" || cell === null ? number(cell) : cell;
    }
  }
  holder.replaceChildren(table);
}

function fillKey(chart, entries) {
  chart.key.replaceChildren(
    ...entries.map(({ colour, sign, text }) => {
      const item = make("li", "", text);
      const swatch = make("b", "", sign);
      swatch.setAttribute("aria-hidden", "true");
      swatch.style.color = colour;
      item.prepend(swatch);
      return item;
    }),
  );
}

function sendBrush(sigs) {
  brushed = sigs !== null;
  document.dispatchEvent(new CustomEvent("audiotok:brush", { detail: { sigs } }));
}

function drawAll() {
  for (const chart of allCharts) chart.draw();
}

// Paper has one canvas a chart: of several that lie on one another, as of a heatmap, it would show the last.
function flatten(box) {
  const [base, ...others] = box.querySelectorAll("canvas");
  const context = base.getContext("2d");
  context.save();
  context.resetTransform();
  for (const other of others) context.drawImage(other, 0, 0);
  context.restore();
}

function startCharts() {
  if (!charts) return;
  startTradeoff();
  startParallel();
  startCurves();
  startBars();
  startHeatmap();
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const chart = allCharts.find(({ frame }) => frame === entry.target);
        chart.near = entry.isIntersecting;
        if (chart.near && chart.stale) chart.draw();
      }
    },
    { rootMargin: "400px" },
  );
  const sized = new ResizeObserver((entries) => {
    for (const { target } of entries) allCharts.find(({ box }) => box === target).draw();
  });
  for (const { box, frame } of allCharts) {
    seen.observe(frame);
    sized.observe(box);
  }
  document.addEventListener("audiotok:shown", ({ detail }) => {
    chartSigs = new Set(detail.sigs);
    drawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { // the class `paper` gives the colours and the width of a sheet
    root.classList.add("paper");
    for (const chart of allCharts) {
      chart.draw(true);
      flatten(chart.box);
    }
  });
  addEventListener("afterprint", () => {
    root.classList.remove("paper");
    drawAll();
  });
}
