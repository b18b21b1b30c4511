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
const runName = (run) => (run === data.reference ? "reference" : [data.runs[run], run].filter(Boolean).join(" · "));
