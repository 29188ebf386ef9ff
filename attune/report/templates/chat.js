"use strict";
const at = (id) => document.getElementById(id);
const model = at("turns").dataset.model;
let turns = [], busy = false;

function show(role, words) {
  const turn = document.createElement("div");
  const name = document.createElement("b");
  name.textContent = role === "user" ? "you: " : `${model} (a machine): `;
  turn.className = `turn ${role}`;
  turn.dir = "auto";
  turn.append(name, document.createTextNode(words));
  at("turns").append(turn);
  turn.scrollIntoView({block: "end"});
}

async function ask(messages) {
  const headers = {"Content-Type": "application/json"};
  if (at("key")) headers.Authorization = `Bearer ${at("key").value}`;
  const response = await fetch("/v1/chat/completions", {
    method: "POST", headers, body: JSON.stringify({model, messages, max_tokens: 256}),
  });
  const body = await response.json();
  if (!response.ok) throw new Error(body.error ? body.error.message : JSON.stringify(body.detail || body));
  return body.choices[0].message.content || "";
}

at("say").addEventListener("submit", async (event) => {
  event.preventDefault();
  const words = at("text").value.trim();
  if (!words || busy) return;
  busy = true;
  at("send").disabled = true;
  const asked = [...turns, {role: "user", content: words}];
  try {
    const reply = (await ask(asked)).trim();
    at("problem").textContent = "";
    at("text").value = "";
    show("user", words);
    show("assistant", reply || "(an empty reply)");
    // Chat templates refuse an empty turn.
    if (reply) turns = [...asked, {role: "assistant", content: reply}];
  } catch (error) {
    at("problem").textContent = `No reply: ${error.message}`;
  }
  busy = false;
  at("send").disabled = false;
  at("text").focus();
});
at("new").addEventListener("click", () => {
  turns = [];
  at("turns").replaceChildren();
  at("text").focus();
});
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("say").requestSubmit();
  }
});
at("text").focus();
