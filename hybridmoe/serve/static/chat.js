// Chat page with one conversation, kept in this tab only.

import { Conversation } from "./conversation.js";
import { ExpertMap } from "./experts.js";
import { events } from "./stream.js";
import { tierCounts, tierRows } from "./tiers.js";

const $ = (id) => document.getElementById(id);
const STOPPED = "stopped", CUT_OFF = "cut off at the token limit"; // not errors
const KEPT = ["key", "system", "temperature", "max-tokens"]; // settings kept over a reload
const map = new ExpertMap($("experts"), $("expert"));
const talk = new Conversation();
let running = null; // AbortController of the response under way

for (const id of KEPT) {
  $(id).value = sessionStorage.getItem(id) ?? "";
  $(id).addEventListener("change", () => sessionStorage.setItem(id, $(id).value));
}
$("key").addEventListener("change", connect);
$("new").addEventListener("click", () => {
  running?.abort();
  running = null;
  talk.clear();
  map.reset();
  $("status").textContent = "";
  show();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) send(); // else the next message stays in the box
  }
});
$("ask").addEventListener("submit", (event) => event.preventDefault());
$("send").addEventListener("click", (event) => {
  if (!running) send();
  else if (event.detail < 2) running.abort(); // a double click on "Send" does not stop
});
addEventListener("pagehide", () => talk.save());
talk.load();
if (talk.isCut) $("status").textContent = "the first messages of this conversation were too long to keep";
show();
connect();

/** Fetch the model's facts; retry while it loads. */
async function connect() {
  const key = $("key").value;
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  try {
    const reply = await fetch("/v1/models", { headers });
    if (reply.ok) {
      const model = (await reply.json()).data[0];
      $("model").textContent = `${model.id} · context ${model.max_model_len} tokens`;
      const { n_layer, n_dense_layers, n_experts } = model.meta;
      map.shape(n_layer - n_dense_layers, n_experts, n_dense_layers);
      return;
    }
    const { error } = await reply.json();
    $("model").textContent = error.message;
    if (reply.status === 401) {
      $("settings").open = true;
      return;
    }
  } catch {
    $("model").textContent = "no connection";
  }
  setTimeout(connect, 1000);
}

/** Send the text in the box. */
function send() {
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  $("text").focus();
  respond(talk.ask(text));
}

/** Generate a turn's response. */
async function respond(reply) {
  const mine = (running = new AbortController());
  const body = request();
  $("status").textContent = "";
  map.reset();
  show();
  const shown = $("messages").lastElementChild;
  let problem = null;
  try {
    await read(body, mine.signal, reply, shown);
  } catch (error) {
    problem = error.name === "AbortError" ? STOPPED : error.message;
  }
  if (running !== mine) return; // another conversation was started
  running = null;
  if (problem !== null) $("status").textContent = problem === STOPPED ? problem : "";
  talk.end(problem);
  show();
}

async function read(body, signal, reply, shown) {
  const key = $("key").value, before = await tierCounts(key);
  const began = performance.now();
  let first = 0, tokens = 0;
  for await (const event of events("/v1/chat/completions", body, { key, signal })) {
    const progress = event.prompt_progress;
    if (progress) $("status").textContent = `prefill: ${progress.processed} of ${progress.total} tokens`;
    for (const token of event.experts ?? []) {
      map.add(token);
      tokens += 1;
      first ||= performance.now();
    }
    const choice = event.choices[0] ?? {};
    reply.content += choice.delta?.content ?? "";
    if (choice.delta?.reasoning_content) {
      reply.reasoning_content = (reply.reasoning_content ?? "") + choice.delta.reasoning_content;
    }
    if (choice.finish_reason === "length") reply.note = CUT_OFF;
    fill(shown, reply);
    if (tokens > 1) $("status").textContent = `${rate(tokens - 1, performance.now() - first)} tokens/s`;
    if (event.timings) figures(event.timings, first - began);
  }
  rows(tierRows(before, await tierCounts(key)));
}

function request() {
  const system = $("system").value.trim();
  const body = {
    messages: system ? [{ role: "system", content: system }, ...talk.sent] : talk.sent,
    stream: true,
    return_progress: true,
    return_experts: true,
  };
  if ($("temperature").value !== "") body.temperature = Number($("temperature").value);
  if ($("max-tokens").value !== "") body.max_tokens = Number($("max-tokens").value);
  return body;
}

function rate(count, milliseconds) {
  return milliseconds > 0 ? ((count * 1000) / milliseconds).toFixed(1) : "–";
}

function figures(timings, firstMs) {
  $("status").textContent = `${timings.predicted_per_second.toFixed(1)} tokens/s`;
  $("figures").replaceChildren();
  rows({
    prompt: `${timings.prompt_n} tokens, ${timings.cache_n} cached, ${timings.prompt_per_second.toFixed(0)} tokens/s`,
    response: `${timings.predicted_n} tokens, ${timings.predicted_per_second.toFixed(1)} tokens/s`,
    "first token": `${(firstMs / 1000).toFixed(2)} s`,
    experts: `${map.used} of ${map.layers * map.experts} chosen`,
  });
}

/** Append figures: values by name. */
function rows(values) {
  $("figures").append(
    ...Object.entries(values).flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
  );
}

/** Render the whole conversation, and save it. */
function show() {
  const items = talk.turns.flatMap((turn, i) => {
    const item = element("li", "", turn.role);
    fill(item, turn);
    if (!running) item.append(tools(item, turn, i));
    return turn.note ? [item, problem(turn.note)] : [item];
  });
  if (talk.failed) items.push(...failure(talk.failed));
  $("messages").replaceChildren(...items);
  $("send").textContent = running ? "Stop" : "Send";
  $("messages").lastElementChild?.scrollIntoView({ block: "end" });
  talk.save();
}

function tools(item, turn, i) {
  const row = element("div", "", "tools");
  if (turn.role === "user") row.append(button("Edit", () => edit(item, turn.content, i)));
  else if (i === talk.turns.length - 1) row.append(button("Regenerate", () => respond(talk.again(i))));
  return row;
}

/** Render a failed message and its error; it is not part of the conversation. */
function failure({ text, at, problem: words }) {
  const again = () => respond(text === null ? talk.again(at) : talk.ask(text, at));
  const said = problem(words);
  const row = element("div", "", "tools");
  row.append(button("Try again", again));
  said.append(row);
  if (text === null) return [said];
  const item = element("li", "", "user failed");
  fill(item, { content: text });
  row.append(button("Edit", () => edit(item, text, at)));
  return [item, said];
}

function problem(words) {
  const isError = words !== STOPPED && words !== CUT_OFF;
  const item = element("li", words, isError ? "error" : "note");
  if (isError) item.setAttribute("role", "alert");
  return item;
}

/** Update a message's text. Cheap enough for every token. */
function fill(item, message) {
  for (const [name, text] of [["reasoning", message.reasoning_content], ["content", message.content]]) {
    let place = item.querySelector(`.${name}`);
    if (!place && text) {
      place = element("div", "", name);
      item.append(place);
    }
    if (place) place.textContent = text;
  }
  const list = $("messages");
  if (list.scrollHeight - list.scrollTop - list.clientHeight < 80) list.scrollTop = list.scrollHeight;
}

function edit(item, text, at) {
  const box = element("textarea");
  box.value = text;
  box.rows = 3;
  const submit = button("Send", () => {
    if (box.value.trim()) respond(talk.ask(box.value.trim(), at));
  });
  item.replaceChildren(box, submit, button("Cancel", show));
  box.focus();
}

function button(text, action) {
  const made = element("button", text, "small");
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}

function element(kind, text = "", name = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}
