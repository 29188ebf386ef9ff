"use strict";
const at = (id) => document.getElementById(id);
let rater = "", item = null;

function text(name, content, kind) {
  const node = document.createElement(name);
  node.textContent = content;
  node.dir = "auto";
  if (kind) node.className = kind;
  return node;
}

async function request(path, options) {
  try {
    const response = await fetch(path, options);
    const body = await response.json();
    if (!response.ok) throw new Error(body.error);
    at("problem").textContent = "";
    return body;
  } catch (error) {
    at("problem").textContent = `Not saved: ${error.message}. Try again.`;
    return null;
  }
}

async function next() {
  const state = await request(`/next?rater=${encodeURIComponent(rater)}`);
  if (!state) return;
  at("name").hidden = true;
  at("count").textContent = `${state.done} of ${state.all}`;
  item = state.item || null;
  at("compare").hidden = !item;
  at("finished").hidden = Boolean(item);
  if (!item) return;
  at("context").replaceChildren(...item.context.map(([role, words]) => {
    const turn = text("p", "", "turn");
    turn.append(text("b", `${role}: `), document.createTextNode(words));
    return turn;
  }));
  ["first", "second"].forEach((place, i) => { at(place).textContent = item.replies[i] || "(empty)"; });
  at("reason").value = "";
}

async function answer(better) {
  if (!item) return;
  const sent = {rater, example: item.example, hash: item.hash, better, reason: at("reason").value};
  item = null;
  const saved = await request("/answer", {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(sent),
  });
  if (saved) await next(); else item = {example: sent.example, hash: sent.hash};
}

at("name").addEventListener("submit", (event) => {
  event.preventDefault();
  rater = at("rater").value.trim();
  if (rater) next();
});
for (const better of ["first", "tie", "second"]) at(`take-${better}`).addEventListener("click", () => answer(better));
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const better = {1: "first", 0: "tie", 2: "second"}[event.key];
  if (better) answer(better);
});
at("rater").focus();
