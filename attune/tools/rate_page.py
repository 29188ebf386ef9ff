"""The page of `attune rate`: it loads nothing from elsewhere, and shows replies as text alone."""

from __future__ import annotations

from attune.report.figures import CSS
from attune.report.pages import hashed

STYLE = """
.replies { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; margin: 1rem 0; }
.reply { border: 1px solid var(--edge); border-radius: 6px; padding: .75rem 1rem; }
.reply h2 { font-size: .95rem; margin: 0 0 .4rem; } .reply p, .turn { overflow-wrap: anywhere; white-space: pre-wrap; }
.turn b { color: var(--dim); } input, textarea, button { font: inherit; }
textarea { width: 100%; box-sizing: border-box; }
.buttons { display: flex; flex-wrap: wrap; gap: .5rem; margin: .5rem 0; } button { padding: .4rem .9rem; }
#problem { color: #d55e00; font-weight: 600; }
"""
SCRIPT = """
"use strict";
const at = (id) => document.getElementById(id);
let rater = "", item = null;

function text(name, content, kind) {
  const made = document.createElement(name);
  made.textContent = content;
  made.dir = "auto";
  if (kind) made.className = kind;
  return made;
}

async function asked(path, options) {
  try {
    const response = await fetch(path, options);
    const found = await response.json();
    if (!response.ok) throw new Error(found.error);
    at("problem").textContent = "";
    return found;
  } catch (error) {
    at("problem").textContent = `Not kept: ${error.message}. Try again.`;
    return null;
  }
}

async function next() {
  const state = await asked(`/next?rater=${encodeURIComponent(rater)}`);
  if (!state) return;
  at("name").hidden = true;
  at("count").textContent = `${state.done} of ${state.all}`;
  item = state.item || null;
  at("compare").hidden = !item;
  at("finished").hidden = Boolean(item);
  if (!item) return;
  at("context").replaceChildren(...item.context.map(([role, said]) => {
    const turn = text("p", "", "turn");
    turn.append(text("b", `${role}: `), document.createTextNode(said));
    return turn;
  }));
  ["first", "second"].forEach((place, i) => { at(place).textContent = item.replies[i] || "(empty)"; });
  at("reason").value = "";
}

async function answer(better) {
  if (!item) return;
  const given = {rater, example: item.example, hash: item.hash, better, reason: at("reason").value};
  item = null;
  const kept = await asked("/answer", {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(given),
  });
  if (kept) await next(); else item = {example: given.example, hash: given.hash};
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
"""
POLICY = (
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    f"frame-ancestors 'none'; script-src '{hashed(SCRIPT)}'"
)
PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Which reply is the better one?</title>
<style>{CSS}{STYLE}</style>
</head>
<body>
<h1>Which reply is the better one?</h1>
<p>Both replies come from language models, unchecked: some are wrong or hurtful, and none is counsel. Say which one you
would rather hear, had you said what stands above it.</p>
<p id="problem" role="alert"></p>
<form id="name"><label>Your name, or any word that you will know again
<input id="rater" required maxlength="80" autocomplete="off"></label> <button>begin</button></form>
<section id="compare" hidden>
<div id="context"></div>
<div class="replies">
<div class="reply"><h2>reply 1</h2><p id="first" dir="auto"></p></div>
<div class="reply"><h2>reply 2</h2><p id="second" dir="auto"></p></div>
</div>
<label>why, if you like <textarea id="reason" rows="2" maxlength="2000"></textarea></label>
<div class="buttons">
<button type="button" id="take-first">1 is better (1)</button>
<button type="button" id="take-tie">a tie (0)</button>
<button type="button" id="take-second">2 is better (2)</button>
</div>
</section>
<p id="finished" hidden>That was the last one. Thank you.</p>
<p><output id="count"></output></p>
<script>{SCRIPT}</script>
</body>
</html>
"""
