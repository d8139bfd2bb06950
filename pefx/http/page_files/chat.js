"use strict";
// The base and a policy answer side by side. The key stays in its field: nothing is stored.

const at = (id) => document.getElementById(id);
const sides = {
  base: { box: at("base"), model: null, turns: [] },
  own: { box: at("own"), model: null, turns: [] },
};
let running = null; // an AbortController while answers come
let looked = 0; // searches begun, so that a late answer does not replace a later one

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (at("key").value) headers.authorization = `Bearer ${at("key").value.trim()}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  throw new Error(told?.error?.message ?? `${answer.status} ${answer.statusText}`);
}

function element(kind, name, text) {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Models: the base is the one without a revision, and comes first where the key may see it.

async function look() {
  const mine = ++looked;
  const prefix = at("policy").value.trim();
  try {
    const query = new URLSearchParams({ prefix, limit: "20" });
    const page = await (await ask(`/v1/models?${query}`)).json();
    if (mine !== looked) return;
    show(page.data.filter((model) => model.revision !== null), page.has_more);
    at("state").textContent = "";
  } catch (error) {
    at("state").textContent = error.message;
  }
}

function show(models, more) {
  const rows = models.map((model) => {
    const row = element("li", "", model.id);
    row.role = "option";
    row.dataset.name = model.id;
    row.append(element("small", "", `revision ${model.revision}, rank ${model.rank}`));
    row.addEventListener("mousedown", (event) => { event.preventDefault(); choose(model.id); });
    return row;
  });
  if (more) rows.push(element("li", "quiet", "… type more of the name"));
  if (!rows.length) rows.push(element("li", "quiet", "no policy begins like this"));
  at("found").replaceChildren(...rows);
  open(true);
}

function open(whether) {
  at("found").hidden = !whether;
  at("policy").setAttribute("aria-expanded", String(whether));
}

function choose(name) {
  at("policy").value = name;
  open(false);
  name_sides();
}

function step(by) {
  const rows = [...at("found").querySelectorAll("li[data-name]")];
  if (!rows.length) return;
  const now = rows.findIndex((row) => row.getAttribute("aria-selected") === "true");
  const next = rows[(now + by + rows.length + (now < 0 && by < 0 ? 1 : 0)) % rows.length];
  for (const row of rows) row.setAttribute("aria-selected", String(row === next));
  next.scrollIntoView({ block: "nearest" });
}

async function find_base() {
  try {
    const page = await (await ask("/v1/models?limit=1")).json();
    sides.base.model = page.data.find((model) => model.revision === null)?.id ?? null;
    at("state").textContent = "";
  } catch (error) {
    sides.base.model = null;
    at("state").textContent = error.message;
  }
  name_sides();
}

function name_sides() {
  sides.own.model = at("policy").value.trim() || null;
  for (const [name, side] of Object.entries(sides)) {
    side.box.querySelector(".name").textContent = side.model ?? (name === "base" ? "no base" : "no policy chosen");
  }
}

// Answers.

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function spelled(token) {
  const share = (100 * Math.exp(token.logprob)).toFixed(token.logprob > -4.6 ? 0 : 2);
  return `${JSON.stringify(token.token)}  ${share} %  (${token.logprob.toFixed(3)})`;
}

// A piece of text with the tokens that made it: a token that is a part of a character waits for the rest.
function piece(text, tokens) {
  const worst = Math.min(0, ...tokens.map((token) => token.logprob));
  const made = element("span", `p${[-0.2, -0.7, -1.6, -3].filter((bound) => worst < bound).length}`, text);
  made.title = tokens
    .map((token) => [spelled(token), ...token.top_logprobs.map((other) => `    ${spelled(other)}`)].join("\n"))
    .join("\n");
  return made;
}

async function answer(side, settings, signal) {
  const turns = side.box.querySelector(".turns");
  const line = element("p", "assistant running");
  const small = side.box.querySelector("small");
  turns.append(line);
  const began = performance.now();
  let text = "", waiting = [], count = 0, first = null;
  try {
    const body = {
      ...settings, model: side.model, messages: side.turns, stream: true, logprobs: true, top_logprobs: 3,
    };
    const reply = await ask("/v1/chat/completions", {
      method: "POST", signal, headers: { "content-type": "application/json" }, body: JSON.stringify(body),
    });
    for await (const event of events(reply)) {
      if (event.error) throw new Error(event.error.message);
      for (const choice of event.choices) {
        const tokens = choice.logprobs?.content ?? [];
        if (tokens.length) first ??= performance.now();
        count += tokens.length;
        waiting.push(...tokens);
        if (!choice.delta.content) continue;
        text += choice.delta.content;
        line.append(piece(choice.delta.content, waiting));
        waiting = [];
        turns.scrollTop = turns.scrollHeight;
      }
      side.box.querySelector(".name").textContent = event.model;
      if (first !== null) {
        const seconds = (performance.now() - began) / 1000;
        small.textContent = `${count} tokens, first after ${Math.round(first - began)} ms, ${seconds.toFixed(1)} s`;
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") turns.append(element("p", "told", error.message));
  } finally {
    line.classList.remove("running");
    if (!text) line.remove();
    side.turns.push({ role: "assistant", content: text });
  }
}

async function send() {
  const text = at("text").value;
  if (!text.trim() || running) return;
  const asked = Object.values(sides).filter((side) => side.model);
  if (!asked.length) {
    at("state").textContent = "choose a policy first";
    return;
  }
  at("text").value = "";
  for (const side of asked) {
    side.turns.push({ role: "user", content: text });
    side.box.querySelector(".turns").append(element("p", "user", text));
  }
  const settings = {};
  for (const name of ["temperature", "max_tokens", "seed"]) {
    if (at(name).value !== "") settings[name] = Number(at(name).value);
  }
  running = new AbortController();
  busy(true);
  await Promise.all(asked.map((side) => answer(side, settings, running.signal)));
  running = null;
  busy(false);
}

function busy(whether) {
  at("send").disabled = whether;
  at("stop").disabled = !whether;
  document.body.dataset.busy = String(whether);
}

function clear() {
  running?.abort();
  for (const side of Object.values(sides)) {
    side.turns = [];
    side.box.querySelector(".turns").replaceChildren();
    side.box.querySelector("small").textContent = "";
  }
  name_sides();
}

let timer = 0;
at("policy").addEventListener("input", () => { name_sides(); clearTimeout(timer); timer = setTimeout(look, 150); });
at("policy").addEventListener("focus", look);
at("policy").addEventListener("blur", () => open(false));
at("policy").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    step(event.key === "ArrowDown" ? 1 : -1);
  } else if (event.key === "Enter") {
    event.preventDefault();
    choose(at("found").querySelector('[aria-selected="true"]')?.dataset.name ?? at("policy").value.trim());
  } else if (event.key === "Escape") open(false);
});
at("key").addEventListener("change", find_base);
for (const name of ["settings", "who"]) at(name).addEventListener("submit", (event) => event.preventDefault());
at("say").addEventListener("submit", (event) => { event.preventDefault(); send(); });
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
at("stop").addEventListener("click", () => running?.abort());
at("clear").addEventListener("click", clear);
at("tint").addEventListener("change", () => document.body.classList.toggle("tinted", at("tint").checked));
document.body.classList.add("tinted");
find_base();
