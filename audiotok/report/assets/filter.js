// Which runs are shown: words and comparisons of the search, chosen values, ranges, a selection made in a plot.

const COMPARISON = /^(==|!=|>=|<=|=|>|<)(.*)$/;
const ORDER = { ">": (a, b) => a > b, "<": (a, b) => a < b, ">=": (a, b) => a >= b, "<=": (a, b) => a <= b };

// A number as people write it: 1.5, 1,5, 1e-3, inf, or a duration h:mm:ss in seconds; NaN if it is none.
function amount(text) {
  const plain = text.trim().replace("\u2212", "-").replace(",", ".").toLowerCase();
  if (/^\d+(:\d\d?){1,2}$/.test(plain)) return plain.split(":").reduce((sum, part) => sum * 60 + Number(part), 0);
  return plain === "" ? Number.NaN : Number(plain.replace(/^([+-]?)inf$/, "$1Infinity"));
}

const squeezed = (text) => text.replace(/\s+/g, "").toLowerCase();

// Columns by the names that a search may use: the whole one, or what follows its last dot; parameters come first.
function namedColumns(columns) {
  const names = columns.map((column) => [column.name.toLowerCase(), column]);
  const short = names.filter(([name]) => name.includes(".")).map(([name, column]) => [name.split(".").pop(), column]);
  return [...names, ...short];
}

// What one word of the search demands of a row.
function demand(word, names, texts) {
  for (const [name, column] of names) {
    const found = word.startsWith(name) && COMPARISON.exec(word.slice(name.length));
    if (found) return comparison(column, found[1], found[2]);
  }
  return (row) => texts[row].includes(word);
}

function comparison(column, operator, wanted) {
  if (!wanted) return () => true; // still being typed
  const number = amount(wanted);
  if (ORDER[operator]) return (row) => column.keys !== null && ORDER[operator](column.keys[row], number);
  const missing = wanted === "null" ? "-" : squeezed(wanted);
  const same = (row) => squeezed(column.texts[row]) === missing || column.keys?.[row] === number;
  return (row) => same(row) === (operator !== "!=");
}

// Calls `changed` with the rows that fit, in the order of the runs, now and whenever they may have become others.
function startFilter(columns, changed) {
  const form = find("filters");
  const selects = [...form.querySelectorAll("select[data-column]")];
  const ends = [...form.querySelectorAll("[data-range]")];
  const names = namedColumns(columns);
  const sigs = columns[0].texts;
  const texts = sigs.map((_, row) =>
    [...columns.map((column) => column.texts[row]), data.words[row]].join("\n").toLowerCase());
  const state = selects.find((select) => columns[select.dataset.column].role === "state"); // none if all have the same
  const buttons = state ? [...document.querySelectorAll("[data-state]")].map(stateButton) : [];
  let brushed = null;

  function demands() {
    const words = find("filter-text").value.toLowerCase().match(/(?:"[^"]*"?|[^\s"])+/g) ?? [];
    const list = words.map((word) => demand(word.replaceAll('"', ""), names, texts));
    for (const { value, dataset } of selects) {
      if (value) list.push((row) => columns[dataset.column].texts[row] === value);
    }
    for (const input of ends) {
      const number = amount(input.value);
      const wrong = input.value.trim() !== "" && Number.isNaN(number);
      input.setAttribute("aria-invalid", wrong);
      if (Number.isNaN(number)) continue;
      const fits = ORDER[input.dataset.end === "low" ? ">=" : "<="];
      list.push((row) => fits(columns[input.dataset.range].keys[row], number));
    }
    if (brushed) list.push((row) => brushed.has(sigs[row]));
    return list;
  }

  function filter() {
    const list = demands();
    const rows = [];
    for (let row = 0; row < sigs.length; row += 1) if (list.every((fits) => fits(row))) rows.push(row);
    const ranges = ends.filter((input) => input.value.trim() !== "").length;
    find("ranges-set").textContent = ranges ? `(${ranges} set)` : "";
    find("shown").textContent =
      `${rows.length} of ${sigs.length} shown${brushed ? `, of ${brushed.size} selected in a plot` : ""}`;
    for (const button of buttons) button.setAttribute("aria-pressed", state.value === button.dataset.state);
    changed(rows);
    document.dispatchEvent(new CustomEvent("audiotok:shown", { detail: { sigs: rows.map((row) => sigs[row]) } }));
  }

  // The counts at the top of the page choose a state; pressed again they choose all.
  function stateButton(count) {
    const button = make("button", count.className);
    button.type = "button";
    button.dataset.state = count.dataset.state;
    button.append(...count.childNodes);
    button.addEventListener("click", () => {
      state.value = state.value === button.dataset.state ? "" : button.dataset.state;
      filter();
    });
    count.replaceWith(button);
    return button;
  }

  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(() => {
    document.dispatchEvent(new CustomEvent("audiotok:brush", { detail: { sigs: null } })); // plots drop theirs too
  }));
  form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("audiotok:brush", (event) => {
    brushed = event.detail.sigs && new Set(event.detail.sigs);
    filter();
  });
  form.hidden = false;
  return filter;
}
