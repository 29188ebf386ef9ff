"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [search, label, order, count, list, more] =
  ["search", "label", "order", "count", "list", "more"].map((id) => document.getElementById(id));
const STEP = 40;
let matches = [], shown = 0;

function element(name, text, kind) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

function paragraph(text) {
  const node = element("p", text || "(empty)");
  node.dir = "auto";
  return node;
}

function reply(title, text, scores, kind) {
  const node = element("section", undefined, kind);
  node.append(element("h3", title), paragraph(text));
  if (scores) {
    const table = element("dl");
    data.scores.forEach(([heading, digits], i) => {
      if (scores[i] === null) return;
      const cell = element("div");
      cell.append(element("dt", heading), element("dd", scores[i].toFixed(digits)));
      table.append(cell);
    });
    node.append(table);
  }
  return node;
}

function card(row) {
  const node = element("article"), title = element("h2", row.label + " ");
  node.tabIndex = 0;
  title.append(element("span", row.id));
  node.append(title);
  for (const [role, text] of row.context) {
    const turn = element("p", undefined, "turn");
    turn.dir = "auto";
    turn.append(element("b", role + ": "), document.createTextNode(text));
    node.append(turn);
  }
  const replies = element("div", undefined, "replies");
  replies.append(reply("a person", row.reference, null, "reply person"));
  data.variants.forEach((name, i) =>
    replies.append(reply(data.machine + ": " + name, row.replies[i], row.scores[i], "reply")));
  node.append(replies);
  return node;
}

function add() {
  list.append(...matches.slice(shown, shown + STEP).map(card));
  shown = Math.min(shown + STEP, matches.length);
  more.hidden = shown === matches.length;
}

function update() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  matches = data.rows.filter((row) => !label.value || row.label === label.value).filter((row) => {
    const text = [row.id, row.label, row.reference, ...row.replies, ...row.context.map((turn) => turn[1])]
      .join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  // A whole id is that dialogue alone: the link of a chart.
  const named = data.rows.filter((row) => row.id === search.value);
  if (named.length) matches = named;
  if (order.value === "differ") matches = [...matches].sort((a, b) => b.differ - a.differ);
  count.textContent = `${matches.length} of ${data.rows.length}`;
  list.replaceChildren();
  shown = 0;
  add();
}

function step(by) {
  const cards = [...list.children], here = cards.indexOf(document.activeElement.closest("article"));
  if (by > 0 && here === cards.length - 1) add();
  const next = list.children[Math.max(0, here + by)];
  if (next) { next.focus(); next.scrollIntoView({block: "center"}); }
}

for (const name of [...new Set(data.rows.map((row) => row.label))].sort()) label.append(new Option(name, name));
search.addEventListener("input", update);
label.addEventListener("change", update);
order.addEventListener("change", update);
more.addEventListener("click", add);
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") { search.value = ""; update(); search.blur(); return; }
  if (event.target.closest("input, select")) return;
  if (event.key === "/") search.focus();
  else if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else return;
  event.preventDefault();
});
function follow() {
  search.value = decodeURIComponent(location.hash.slice(1));
  update();
}
window.addEventListener("hashchange", follow);
follow();
