// Answers of blind tests: kept in the browser, saved as CSV.

const COLUMNS = [
  "time", "grid", "listener", "kind", "test", "trial", "trials", "clip", "loudness",
  "a", "b", "x", "answer", "correct", "condition", "position", "score",
];

function openStorage() {
  const key = `audiotok-votes:${data.grid}`;
  const memory = { votes: [], session: null };
  const store = { memory, lasting: false, save };
  function save() {
    try { if (store.lasting) localStorage.setItem(key, JSON.stringify(memory)); } catch { store.lasting = false; } // it is full
  }
  try {
    const earlier = JSON.parse(localStorage.getItem(`audiotok-abx:${data.grid}`))?.votes ?? []; // of pages before
    memory.votes = earlier.map((vote) => ({ grid: data.grid, kind: "abx", ...vote }));
    Object.assign(memory, JSON.parse(localStorage.getItem(key) ?? "{}"));
    localStorage.setItem(key, JSON.stringify(memory));
    store.lasting = true;
  } catch { /* a browser that keeps nothing for files from disk; the page shows that */ }
  return store;
}

function csv(votes) {
  const cell = (value) => {
    const text = String(value ?? "").replace(/^[=+\-@\t\r]/, "'$&"); // a spreadsheet must not take a name for a formula
    return `"${text.replaceAll('"', '""')}"`;
  };
  return [COLUMNS, ...votes.map((vote) => COLUMNS.map((name) => vote[name]))]
    .map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}

function saveVotes(votes) {
  saveFile(new Blob([csv(votes)], { type: "text/csv" }), `votes_${new Date().toISOString().slice(0, 10)}.csv`);
}
