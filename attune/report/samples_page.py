"""The page on which people read replies: every test dialogue with those of all variants, to search and sort.

One file that loads nothing: the dialogues are in it as JSON, and its script, which the page's policy names by hash,
puts them on the page as text alone, so that nothing a model wrote can become a part of the page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from itertools import combinations
from statistics import fmean
from typing import Any

from attune.report.figures import CSS
from attune.report.pages import hashed
from attune.scoring.text.overlap import tokens

# Of data/scores/<variant>.parquet: heading and decimals.
SCORES = {
    "level_er": ("ER", 0),
    "level_ip": ("IP", 0),
    "level_ex": ("EX", 0),
    "rouge_l": ("ROUGE-L", 1),
    "bertscore_f1": ("F-BERT", 1),
}
# The scorers that have them.
SCORE_COLUMNS = {"text": ("rouge_l", "bertscore_f1"), "epitome": ("level_er", "level_ip", "level_ex")}
STYLE = """
body { max-width: 80rem; }
header { position: sticky; top: 0; background: var(--paper); padding: .5rem 0; border-bottom: 1px solid var(--edge); }
form { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; }
input[type=search] { flex: 1 1 16rem; } input, select, button { font: inherit; }
article { border: 1px solid var(--edge); border-radius: 6px; padding: .75rem 1rem; margin: 1rem 0; }
article:focus { outline: 3px solid #0072b2; }
h2 { font-size: 1rem; margin: 0 0 .5rem; } h2 span { color: var(--dim); font-weight: normal; }
.turn { margin: .2rem 0; } .turn b, dt { color: var(--dim); font-weight: 600; }
.replies { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .75rem;
  margin-top: .75rem; }
.reply { border-top: 2px solid var(--edge); padding-top: .4rem; } .reply h3 { font-size: .9rem; margin: 0 0 .3rem; }
.reply p { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; } .reply.person { border-top-style: double; }
dl { display: flex; flex-wrap: wrap; gap: 0 .8rem; margin: .4rem 0 0; font-size: .85rem; }
dl div { display: flex; gap: .3rem; } dd { margin: 0; font-variant-numeric: tabular-nums; }
kbd { border: 1px solid var(--edge); border-radius: 3px; padding: 0 .3em; }
"""
SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [search, label, order, count, list, more] =
  ["search", "label", "order", "count", "list", "more"].map((id) => document.getElementById(id));
const STEP = 40;
let found = [], shown = 0;

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function paragraph(text) {
  const made = element("p", text || "(empty)");
  made.dir = "auto";
  return made;
}

function reply(title, text, scores, kind) {
  const made = element("section", undefined, kind);
  made.append(element("h3", title), paragraph(text));
  if (scores) {
    const table = element("dl");
    data.scores.forEach(([heading, digits], i) => {
      if (scores[i] === null) return;
      const cell = element("div");
      cell.append(element("dt", heading), element("dd", scores[i].toFixed(digits)));
      table.append(cell);
    });
    made.append(table);
  }
  return made;
}

function card(row) {
  const made = element("article"), title = element("h2", row.label + " ");
  made.tabIndex = 0;
  title.append(element("span", row.id));
  made.append(title);
  for (const [role, text] of row.context) {
    const turn = element("p", undefined, "turn");
    turn.dir = "auto";
    turn.append(element("b", role + ": "), document.createTextNode(text));
    made.append(turn);
  }
  const replies = element("div", undefined, "replies");
  replies.append(reply("a person", row.reference, null, "reply person"));
  data.variants.forEach((name, i) =>
    replies.append(reply(data.machine + ": " + name, row.replies[i], row.scores[i], "reply")));
  made.append(replies);
  return made;
}

function add() {
  list.append(...found.slice(shown, shown + STEP).map(card));
  shown = Math.min(shown + STEP, found.length);
  more.hidden = shown === found.length;
}

function update() {
  const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  found = data.rows.filter((row) => !label.value || row.label === label.value).filter((row) => {
    const text = [row.id, row.label, row.reference, ...row.replies, ...row.context.map((turn) => turn[1])]
      .join("\\n").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  if (order.value === "differ") found = [...found].sort((a, b) => b.differ - a.differ);
  count.textContent = `${found.length} of ${data.rows.length}`;
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
update();
"""


def page(
    replies: Mapping[str, Sequence[dict[str, Any]]],
    scores: Mapping[str, Mapping[str, dict[str, float]]],
    title: str,
    lead: str,
    machine: str,
) -> str:
    """The page as HTML.

    Args:
        replies: variant to the rows of `data/replies/<variant>.parquet`; a dialogue that not all have is left out.
        scores: variant to the scores of each reply by its id, those of `SCORES` that there are.
        title: of the page.
        lead: what was run.
        machine: what stands over a reply that no person wrote.
    """
    content = json.dumps(rows(replies, scores) | {"machine": machine}, ensure_ascii=False, separators=(",", ":"))
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src '{hashed(SCRIPT)}'"
    # Inside a script element only "<" could end it.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{CSS}{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(lead)}</p>
<p>Replies headed "{escape(machine)}" come from language models, unchecked: some are wrong or hurtful, and none is
counsel. ER, IP, EX: EPITOME's levels of emotional reaction, interpretation and exploration, 0 to 2.</p>
<header><form role="search">
<input type="search" id="search" placeholder="words in contexts or replies" aria-label="Search">
<label>label <select id="label"><option value="">all</option></select></label>
<label>order <select id="order"><option value="">as in the corpus</option>
<option value="differ">where variants differ most</option></select></label>
<output id="count"></output>
<span><kbd>/</kbd> search <kbd>j</kbd> <kbd>k</kbd> next, previous <kbd>Esc</kbd> clear</span>
</form></header>
<main id="list"></main>
<button id="more" type="button">more</button>
<script type="application/json" id="data">{content.replace("<", chr(92) + "u003c")}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def rows(
    replies: Mapping[str, Sequence[dict[str, Any]]], scores: Mapping[str, Mapping[str, dict[str, float]]]
) -> dict[str, Any]:
    """What the script reads: variants, headings of the scores, and the dialogues in the order of the first variant."""
    by_id = {key: {row["id"]: row for row in own} for key, own in replies.items()}
    first, *others = by_id.values()
    found = []
    for name, row in first.items():
        if all(name in other for other in others):
            texts = [own[name]["reply"] for own in by_id.values()]
            numbers = [scores.get(key, {}).get(name, {}) for key in by_id]
            found.append({
                "id": name, "label": row["label"], "context": [[turn["role"], turn["text"]] for turn in row["context"]],
                "reference": row["reference"], "replies": texts, "differ": round(difference(texts), 3),
                "scores": [[own.get(key) for key in SCORES] for own in numbers],
            })  # fmt: skip
    return {"variants": list(by_id), "scores": list(SCORES.values()), "rows": found}


def difference(texts: Sequence[str]) -> float:
    """How far replies are from each other, 0 to 1: mean over pairs of the share of their words that only one has."""
    words = [set(tokens(text)) for text in texts]
    pairs = [1 - len(a & b) / len(a | b) if a | b else 0.0 for a, b in combinations(words, 2)]
    return fmean(pairs) if pairs else 0.0
