"use strict";
const at = (id) => document.getElementById(id);
let rater = "", item = null;
// The examples that were answered on this page, the last one at the end.
const answered = [];

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

function post(path, content) {
  return request(path, {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(content),
  });
}

async function next() {
  const state = await request(`/next?rater=${encodeURIComponent(rater)}`);
  if (!state) return;
  at("name").hidden = true;
  document.body.classList.add("begun");
  at("undo").hidden = !answered.length;
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
  at("context").scrollTop = at("context").scrollHeight;
  ["first", "second"].forEach((place, i) => { at(place).textContent = item.replies[i] || "(empty)"; });
  at("reason").value = "";
}

async function answer(better) {
  if (!item) return;
  const sent = {rater, example: item.example, hash: item.hash, better, reason: at("reason").value};
  item = null;
  if (await post("/answer", sent)) {
    answered.push(sent.example);
    await next();
  } else item = {example: sent.example, hash: sent.hash};
}

async function undo() {
  const example = answered.pop();
  if (!example) return;
  item = null;
  if (!await post("/undo", {rater, example})) answered.push(example);
  await next();
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
  if (event.key === "u") undo();
});
at("undo").addEventListener("click", undo);
at("rater").focus();
