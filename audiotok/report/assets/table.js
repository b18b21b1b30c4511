// The table of runs: its rows, a page of them at a time; the headings sort, the columns are chosen and remembered.

function startTable() {
  const table = find("runs");
  if (!table) return;
  const number = (key) => (key === null ? Number.NaN : Number(key)); // JSON has no infinity
  const columns = data.table.map((column) => ({
    ...column, keys: column.keys && column.keys.map(number), best: new Set(column.best),
  }));
  const headings = [...table.tHead.rows[0].cells];
  const collator = new Intl.Collator("en", { numeric: true });
  const memory = openMemory("table");
  let rows = []; // those that fit, in the order shown
  let start = 0; // the first of this page
  let compare = (a, b) => a - b;

  const isShown = (column) => column.role === "sig" || (memory.value.columns?.[column.name] ?? column.shown);
  const size = () => Number(find("rows-size").value);

  function cell(column, row) {
    const text = column.texts[row];
    if (column.role === "sig") {
      const heading = make("th");
      heading.scope = "row";
      heading.append(runLink(text));
      return heading;
    }
    const element = make("td", column.kind === "number" ? "number" : "");
    if (column.role === "state") element.append(make("span", `state ${data.tones[text]}`, text));
    else if (column.best.has(row)) {
      const best = make("strong", "best", text);
      best.append(make("span", "hidden", " (best)"));
      element.append(best);
    } else element.textContent = text;
    return element;
  }

  function render(every = false) {
    const chosen = columns.filter(isShown);
    table.classList.toggle("wide", chosen.length > 22); // on paper even numbers break then
    const shown = every ? rows : rows.slice(start, start + size());
    table.tBodies[0].replaceChildren(...shown.map((row) => {
      const line = make("tr");
      line.append(...chosen.map((column) => cell(column, row)));
      return line;
    }));
    const last = start + shown.length;
    find("rows-place").textContent = `${shown.length ? start + 1 : 0}–${last} of ${rows.length}`;
    find("rows-back").disabled = start === 0;
    find("rows-on").disabled = last >= rows.length;
  }

  function turn(place) {
    start = Math.max(0, place);
    find("runs-box").scrollTop = 0;
    render();
  }

  function by(column, sign) {
    const { keys, texts } = columns[column];
    if (!keys) return (a, b) => sign * collator.compare(texts[a], texts[b]) || a - b;
    return (a, b) => {
      if (Number.isNaN(keys[a]) || Number.isNaN(keys[b])) return Number.isNaN(keys[a]) - Number.isNaN(keys[b]) || a - b;
      return keys[a] === keys[b] ? a - b : sign * (keys[a] < keys[b] ? -1 : 1); // what is missing comes last either way
    };
  }

  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      compare = by(column, descending ? -1 : 1);
      rows.sort(compare);
      turn(0);
    });
  });

  function showColumns() {
    headings.forEach((heading, place) => { heading.hidden = !isShown(columns[place]); });
    find("columns-shown").textContent = `(${columns.filter(isShown).length} of ${columns.length})`;
    for (const box of find("columns").querySelectorAll("input")) box.checked = isShown(columns[box.value]);
  }

  function startColumns() {
    for (const [place, column] of columns.entries()) {
      if (column.role === "sig") continue;
      const label = make("label", "check");
      const box = make("input");
      box.type = "checkbox";
      box.value = place;
      box.addEventListener("change", () => choose({ ...memory.value.columns, [column.name]: box.checked }));
      label.append(box, column.name);
      find("columns").append(label);
    }
    const usual = make("button", "", "The usual ones");
    usual.type = "button";
    usual.addEventListener("click", () => choose(undefined));
    find("columns").append(usual);
    find("choose-columns").hidden = false;
  }

  function choose(chosen) {
    memory.value.columns = chosen;
    memory.save();
    showColumns();
    render();
  }

  on("rows-back", "click", () => turn(start - size()));
  on("rows-on", "click", () => turn(start + size()));
  on("rows-size", "change", () => { memory.value.size = find("rows-size").value; memory.save(); turn(0); });
  addEventListener("beforeprint", () => render(true)); // on paper all rows that fit
  addEventListener("afterprint", () => render());
  if (memory.value.size) find("rows-size").value = memory.value.size;
  if (find("rows-size").selectedIndex < 0) find("rows-size").value = "50";
  startColumns();
  showColumns();
  find("runs-box").hidden = false;
  find("pager").hidden = columns[0].texts.length <= 25;
  startFilter(columns, (fitting) => { rows = fitting.sort(compare); turn(0); })();
}
