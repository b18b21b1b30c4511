// The table of runs: sorts by a column, filters by words and values.

function startTable() {
  const table = find("runs");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  const collator = new Intl.Collator("en", { numeric: true });
  const textOf = (row, column) => row.cells[column].dataset.text ?? row.cells[column].textContent;

  function compare(column, sign) {
    if (!headings[column].classList.contains("number")) {
      return (a, b) => sign * collator.compare(textOf(a, column), textOf(b, column));
    }
    const key = (row) => Number.parseFloat(row.cells[column].dataset.key.replace(/inf/, "Infinity"));
    return (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // last, whichever way
      return x === y ? 0 : sign * (x < y ? -1 : 1);
    };
  }

  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      body.append(...[...rows].sort(compare(column, descending ? -1 : 1)));
    });
  });

  const form = find("filters");
  const selects = [...form.querySelectorAll("select")];
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  function filter() {
    const wanted = find("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const fits =
        wanted.every((word) => words.get(row).includes(word)) &&
        selects.every((select) => !select.value || textOf(row, select.dataset.column) === select.value);
      row.hidden = !fits;
      shown += fits;
    }
    find("shown").textContent = `${shown} of ${rows.length} shown`;
  }
  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();
}
