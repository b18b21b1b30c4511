// What the parts of the page's only script share. Texts of files reach the page through textContent alone; nothing is
// fetched, nothing is sent.

const data = JSON.parse(document.getElementById("report-data").textContent);
const find = (id) => document.getElementById(id);
const on = (id, event, call) => find(id).addEventListener(event, call);
const make = (tag, className = "", text = "") => {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
};
const options = (select, pairs) => {
  for (const [value, text] of pairs) select.append(new Option(text, value));
};
// A signature that leads to the page of its run; a report of one file has none.
const runPage = (sig) => (find("report-files") ? null : `runs/${sig}.html`);
function runLink(sig, text = sig) {
  const page = runPage(sig);
  const link = make(page ? "a" : "span", "", text);
  if (page) link.href = page;
  return link;
}
const runName = (run) => (run === data.reference ? "reference" : [data.runs[run], run].filter(Boolean).join(" · "));

// What the browser remembers of this grid under a name: read here, kept by `save` where pages from disk may keep it.
function openMemory(name) {
  const key = `audiotok-${name}:${data.grid}`;
  const memory = { value: {}, save };
  function save() {
    try { localStorage.setItem(key, JSON.stringify(memory.value)); } catch { /* a browser that keeps nothing */ }
  }
  try {
    const stored = JSON.parse(localStorage.getItem(key) ?? "{}");
    if (stored && typeof stored === "object") memory.value = stored;
  } catch { /* the same, or it is not the page's own */ }
  return memory;
}

function saveFile(blob, name) {
  const link = make("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
