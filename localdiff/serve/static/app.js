// The page: what was chosen becomes a request, its canvas messages are shown as they come. Everything stays in this page
// and its server; nothing else is ever loaded.

import { load, Refused, setKey, stream } from "./api.js";
import { CanvasView } from "./canvas.js";
import { HoleEditor } from "./editor.js";

const $ = (id) => document.getElementById(id);
const view = new CanvasView({
  canvas: $("canvas"), slider: $("step"), label: $("step-text"), play: $("play"), tip: $("tip"),
});
const editor = new HoleEditor($("editor"));
const messages = []; // of the conversation
let mode = "complete";
let models = [];
let running = null; // AbortController of the request

const NUMBERS = ["steps", "temperature", "seed"];
const PLACEHOLDERS = { complete: "Once upon a time", chat: "Ask something" };

function settings() {
  const chosen = { model: $("model").value, alternatives: 5, stream_options: { canvas: true, include_usage: true } };
  for (const id of NUMBERS) if ($(id).value !== "") chosen[id] = Number($(id).value);
  for (const id of ["decoder", "preset"]) if ($(id).value) chosen[id] = $(id).value;
  return chosen;
}

// [path, body, text before the canvas]
function request() {
  if (mode === "fill") return ["v1/infill", { ...settings(), parts: editor.parts() }, ""];
  const prompt = $("prompt").value || (mode === "complete" ? PLACEHOLDERS.complete : "");
  const body = { ...settings(), max_tokens: Number($("max_tokens").value) || undefined };
  if (mode === "complete") return ["v1/completions", { ...body, prompt }, prompt];
  messages.push({ role: "user", content: prompt });
  return ["v1/chat/completions", { ...body, messages }, ""];
}

async function run() {
  if (running || (mode === "chat" && !$("prompt").value.trim())) return;
  const asked = mode;
  const [path, body, before] = request();
  running = new AbortController();
  busy(true);
  view.reset(before);
  if (asked === "chat") { drawTalk(); $("prompt").value = ""; }
  let text = "";
  try {
    for await (const { event, data } of stream(path, body, running.signal)) {
      if (event === "canvas") { view.add(data); figures({ nfe: data.step }); continue; }
      const choice = data.choices?.[0];
      text += choice?.text ?? choice?.delta?.content ?? (data.object === "infill" ? data.text : "");
      const timings = choice ? data.timings : data.object === "infill" && data.timings;
      if (timings) figures({ ...timings, tokens: data.usage?.completion_tokens });
    }
    if (asked === "chat") { messages.push({ role: "assistant", content: text }); drawTalk(); }
  } catch (error) {
    if (asked === "chat") { messages.pop(); drawTalk(); $("prompt").value = body.messages.at(-1)?.content ?? ""; }
    if (error.name !== "AbortError") refuse(error);
  } finally {
    running = null;
    busy(false);
    refresh();
  }
}

function busy(on) {
  $("go").disabled = on;
  $("stop").hidden = !on;
  $("canvas").setAttribute("aria-busy", on);
  if (on) $("notice").hidden = true;
}

function refuse(error) {
  $("notice").textContent = error.message;
  $("notice").hidden = false;
  if (error instanceof Refused && error.status === 401) { $("key-field").hidden = false; $("key").focus(); }
}

function figures(known) {
  const shown = [
    ["forwards", known.nfe], ["tokens", known.tokens],
    ["tokens/s", known.answer_tokens_per_second?.toFixed(1)],
    ["tokens per forward", known.tokens_per_forward?.toFixed(2)],
    ["seconds", known.seconds?.toFixed(2)], ["first settled", known.first_settled_seconds?.toFixed(3)],
    ["seed", known.seed], ["decoder", known.decoder?.decoder], ["memory", memory()],
  ].filter(([, value]) => value !== undefined && value !== null);
  $("figures").replaceChildren(...shown.map(([name, value]) => {
    const pair = document.createElement("div");
    for (const [tag, content] of [["dt", name], ["dd", value]]) {
      pair.append(Object.assign(document.createElement(tag), { textContent: content }));
    }
    return pair;
  }));
}

function memory() {
  const model = models.find((each) => each.id === $("model").value);
  return model && `${((model.weight_bytes + model.session_bytes) / 2 ** 20).toFixed(1)} MiB`;
}

function drawTalk() {
  $("talk").replaceChildren(...messages.map(({ role, content }) =>
    Object.assign(document.createElement("div"), { className: `said ${role}`, textContent: content })));
}

function choose(next) {
  mode = next;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.dataset.mode === mode;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    if (chosen) $("work").setAttribute("aria-labelledby", tab.id);
  }
  $("editor").hidden = $("hole").hidden = mode !== "fill";
  $("prompt").hidden = mode === "fill";
  $("prompt").placeholder = PLACEHOLDERS[mode] ?? "";
  $("max_tokens").disabled = mode === "fill";
  $("talk").hidden = mode !== "chat";
  if (!running) view.reset();
  note();
}

// Say so where the chosen model cannot chat.
function note() {
  const model = models.find((each) => each.id === $("model").value);
  const cannot = mode === "chat" && model && !model.chat;
  $("go").disabled = Boolean(cannot) || running !== null;
  $("notice").hidden = !cannot;
  if (cannot) $("notice").textContent = `${model.id} has no chat template: it completes and fills in texts.`;
}

async function refresh() {
  try {
    models = (await load("v1/models")).data;
  } catch (error) {
    refuse(error);
    return;
  }
  const chosen = $("model").value;
  $("model").replaceChildren(...models.map(({ id }) => new Option(id, id, false, id === chosen)));
  const figure = [...$("figures").children].find((pair) => pair.firstChild.textContent === "memory");
  if (figure) figure.lastChild.textContent = memory();
}

async function start() {
  await refresh();
  if (!models.length) return;
  try {
    const options = await load("v1/options");
    for (const id of ["decoder", "preset"]) {
      for (const name of options[id]?.choices ?? []) $(id).append(new Option(name, name));
    }
  } catch (error) { refuse(error); }
  note();
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
$("stop").addEventListener("click", () => running?.abort());
$("hole").addEventListener("click", () => editor.addHole());
$("clear").addEventListener("click", () => {
  messages.length = 0;
  drawTalk();
  view.reset();
  $("figures").replaceChildren();
  if (mode === "fill") editor.set([]);
  else $("prompt").value = "";
});
$("model").addEventListener("change", note);
$("key").addEventListener("change", () => { setKey($("key").value); $("notice").hidden = true; start(); });
$("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
  localStorage.setItem("theme", document.documentElement.dataset.theme);
});
document.querySelector("[role=tablist]").addEventListener("click", (event) => {
  if (event.target.dataset.mode) choose(event.target.dataset.mode);
});
document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!move) return;
  const next = tabs[(tabs.indexOf(event.target) + move + tabs.length) % tabs.length];
  next.focus();
  choose(next.dataset.mode);
});
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
  if (event.key === "Escape") running?.abort();
});

if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
editor.set(["Once upon a time there was a ", { hole: 4 }, ". One day, ", { hole: 12 }, " and they were happy."]);
choose("complete");
start();
