// The chat page: one conversation, kept in this page alone.

import { ExpertMap } from "./experts.js";
import { events } from "./stream.js";

const $ = (id) => document.getElementById(id);
const map = new ExpertMap($("experts"), $("expert"));
const messages = []; // {role, content, reasoning_content?}
let running = null; // AbortController of the answer under way

$("key").value = sessionStorage.getItem("key") ?? "";
$("key").addEventListener("change", () => {
  sessionStorage.setItem("key", $("key").value);
  connect();
});
$("new").addEventListener("click", () => {
  running?.abort();
  messages.length = 0;
  map.reset();
  show();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) {
    running.abort();
    return;
  }
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  messages.push({ role: "user", content: text });
  answer();
});
connect();

/** Learn about the model; again and again while it loads. */
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

/** Ask for the answer to the conversation as it stands. */
async function answer() {
  const reply = { role: "assistant", content: "" };
  const body = request();
  messages.push(reply);
  running = new AbortController();
  map.reset();
  show();
  const shown = $("messages").lastElementChild;
  const began = performance.now();
  let first = 0, tokens = 0;
  try {
    const options = { key: $("key").value, signal: running.signal };
    for await (const event of events("/v1/chat/completions", body, options)) {
      const progress = event.prompt_progress;
      if (progress) $("status").textContent = `reading: ${progress.processed} of ${progress.total} tokens`;
      for (const token of event.experts ?? []) {
        map.add(token);
        tokens += 1;
        first ||= performance.now();
      }
      const delta = event.choices[0]?.delta ?? {};
      reply.content += delta.content ?? "";
      if (delta.reasoning_content) {
        reply.reasoning_content = (reply.reasoning_content ?? "") + delta.reasoning_content;
      }
      fill(shown, reply);
      if (tokens > 1) $("status").textContent = `${rate(tokens - 1, performance.now() - first)} tokens/s`;
      if (event.timings) figures(event.timings, first - began);
    }
  } catch (error) {
    if (error.name === "AbortError") $("status").textContent = "stopped";
    else {
      $("status").textContent = "";
      messages.pop();
      show();
      say(error.message);
      return;
    }
  } finally {
    running = null;
    buttons();
  }
  show();
}

function request() {
  const system = $("system").value.trim();
  const body = {
    messages: system ? [{ role: "system", content: system }, ...messages] : [...messages],
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
  const rows = {
    prompt: `${timings.prompt_n} tokens read, ${timings.cache_n} known, ${timings.prompt_per_second.toFixed(0)} tokens/s`,
    answer: `${timings.predicted_n} tokens, ${timings.predicted_per_second.toFixed(1)} tokens/s`,
    "first token": `${(firstMs / 1000).toFixed(2)} s`,
    experts: `${map.used} of ${map.layers * map.experts} fired`,
  };
  $("figures").replaceChildren(
    ...Object.entries(rows).flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
  );
}

/** Draw the whole conversation. */
function show() {
  $("messages").replaceChildren(...messages.map((message, i) => {
    const item = element("li", "", message.role);
    fill(item, message);
    const tools = element("div", "", "tools");
    if (message.role === "user") tools.append(button("Edit", () => edit(item, i)));
    else if (i === messages.length - 1) tools.append(button("Regenerate", () => again(i)));
    if (!running) item.append(tools);
    return item;
  }));
  buttons();
  $("messages").scrollTop = $("messages").scrollHeight;
}

/** Put a message's text in its place; cheap enough for every token. */
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

function edit(item, index) {
  const box = element("textarea");
  box.value = messages[index].content;
  box.rows = 3;
  const send = button("Send", () => {
    messages.splice(index, messages.length, { role: "user", content: box.value.trim() });
    answer();
  });
  item.replaceChildren(box, send, button("Cancel", show));
  box.focus();
}

function again(index) {
  messages.length = index;
  answer();
}

function buttons() {
  $("send").textContent = running ? "Stop" : "Send";
}

function say(text) {
  $("messages").append(element("li", text, "error"));
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
