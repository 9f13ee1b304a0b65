// Chat page: joins the conversation, its responses, the list of conversations and the settings.

import { Answer } from "./answer.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { Conversation, isEmpty } from "./conversation.js";
import { $, element, icon, iconButton, textButton, toast } from "./dom.js";
import { ExpertTrace, Strip } from "./experts.js";
import { buildFrame, closeSide } from "./frame.js";
import { MapView } from "./mapview.js";
import { MessageView } from "./message.js";
import { rescue, restore } from "./rescue.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";

const QUICK = 6; // messages that are rendered at once; the others follow
const MAX_TRACES = 20, MAX_ANNOUNCED = 1000;

const store = new Store(), settings = new Settings(), map = new MapView(), strip = new Strip($("strip"));
const answers = new Map(); // running, by conversation
const traces = new Map(); // of experts, by message
let talk = new Conversation(), views = new Map(), stuck = true, due = new Set();

const connection = new Connection(settings, (model) => {
  const isDemo = model?.meta?.name === "hybridmoe demo";
  const examples = isDemo
    ? ["What is 47 + 38?", "Tell me a joke.", "What is the capital of France?", "Why is the sky blue?"]
    : ["Explain a mixture of experts in three sentences.", "Write a Python function that merges overlapping intervals.", "Compare TCP and UDP in a table.", "Draft a short, polite reminder of an unpaid invoice."];
  $("examples").replaceChildren(...examples.map((text) => textButton(text, () => { composer.set(text); send(); })));
});
const actions = {
  edit: (message, text) => ask(text, message.files ?? [], message),
  again: (message) => respond(talk.messages.get(message.parent)),
  resume: (message) => respond(null, message),
  branch: (message) => { talk.show(message); save(talk); show(); },
  siblings: (message) => talk.siblings(message),
  isLast: (message) => talk.chat.leaf === message.id,
  isLeftOut: (message) => talk.children(message.id).some((one) => one.role === "assistant" && isEmpty(one) && ["error", "stopped"].includes(one.state)),
  waiting: (message) => answers.get(message.chat)?.waiting ?? "",
  enterKey: () => settings.open("key"),
  focus: () => $("text").focus(),
};
const composer = new Composer(() => send(), () => talk.path.filter(({ role }) => role === "user").map(({ content }) => content));
const sidebar = new Sidebar(store, {
  open: (id) => { location.hash = id; route(); },
  created: startNew,
  imported: () => talk.isNew || open(talk.chat.id),
  removing: async (id) => { const answer = answers.get(id); answer?.stop(); await answer?.ended; },
  renamed: async (id, title) => {
    const chat = answers.get(id)?.conversation.chat ?? (talk.chat.id === id ? talk.chat : await store.chat(id));
    chat.title = title;
    await store.put(chat);
    titled();
  },
});

/** Send what is in the box; during a response it waits. */
function send() {
  if (answers.has(talk.chat.id)) {
    const next = composer.take();
    if (next) (talk.chat.queue ??= []).push(next);
    save(talk);
    show();
    return;
  }
  if (!isValid()) return;
  const next = composer.take();
  if (next) ask(next.content, next.files);
}

function isValid() {
  try {
    settings.request();
    return true;
  } catch (error) {
    toast(`Not sent. ${error.message}`, { name: "Settings", run: () => settings.open() });
    return false;
  }
}

function ask(content, files = [], beside = null) {
  if (answers.has(talk.chat.id)) return toast("A response is under way: stop it first.", null, 4);
  if (!isValid()) return null;
  const question = talk.ask(content, files, beside);
  if (talk.isNew) {
    talk.isNew = false;
    history.replaceState(null, "", `#${talk.chat.id}`);
  }
  return respond(question);
}

/** Generate a response to a question, or continue one that was cut off. */
async function respond(question, continued = null) {
  if (answers.has(talk.chat.id)) return toast("A response is under way: stop it first.", null, 4);
  if (!isValid()) return null;
  const conversation = talk, message = continued ?? conversation.respond(question);
  const messages = conversation.sent(message, continued !== null);
  if (settings.system) messages.unshift({ role: "system", content: settings.system });
  const body = { messages, stream: true, return_progress: true, return_experts: true, ...settings.request() };
  if (connection.chosen) body.model = connection.chosen;
  if (continued) body.continue_final_message = true;
  traces.delete(message.id);
  const answer = new Answer(conversation, message, body, settings.key, watch, () => save(conversation, [message], false));
  answers.set(conversation.chat.id, answer);
  message.state = "streaming";
  save(conversation, question ? [question, message] : [message]);
  stuck = true;
  show();
  answer.ended = answer.run();
  await answer.ended;
  answers.delete(conversation.chat.id);
  await save(conversation, [message]);
  if (message.state === "error") connection.check();
  if (conversation === talk) {
    show();
    announce(message);
    if (message.state === "done" || message.state === "length") sendNext();
  }
  return null;
}

/** Send the first of the messages that wait. */
function sendNext() {
  const next = talk.chat.queue?.shift();
  if (next) ask(next.content, next.files);
}

const watch = {
  update(message) {
    if (message.chat !== talk.chat.id) return;
    if (!due.size) requestAnimationFrame(showDue);
    due.add(message.id);
  },
  experts(message, tokens) {
    if (!connection.shape) return;
    if (!traces.has(message.id)) {
      traces.set(message.id, new ExpertTrace(connection.shape));
      if (traces.size > MAX_TRACES) traces.delete(traces.keys().next().value);
    }
    const trace = traces.get(message.id);
    trace.add(tokens);
    if (message.chat !== talk.chat.id) return;
    strip.show(trace);
    map.show(trace);
  },
  chosen: (message) => traces.get(message.id)?.summary,
};

function showDue() {
  for (const id of due) views.get(id)?.update();
  due.clear();
  $("rate").textContent = answers.get(talk.chat.id)?.rate ?? "";
  $("strip-row").hidden = !lastTrace();
  follow();
}

setInterval(() => {
  const answer = answers.get(talk.chat.id);
  if (answer && isEmpty(answer.message)) views.get(answer.message.id)?.update();
}, 500);

/** Save a conversation and messages of it; say so if that fails. */
async function save(conversation, messages = [], isListed = true) {
  if (conversation.isNew) return;
  try {
    await store.put(conversation.chat, messages);
  } catch (error) {
    toast(`This conversation cannot be saved: ${error.message}. Export it.`);
  }
  if (isListed) await sidebar.refresh();
}

/** Show the whole conversation. Messages already shown keep their elements. */
function show() {
  const path = talk.path, isRunning = answers.has(talk.chat.id);
  const kept = views;
  views = new Map(path.map((message) => [message.id, kept.get(message.id) ?? new MessageView(message, actions)]));
  const items = path.map(({ id }) => views.get(id).item), list = $("messages");
  items.forEach((item, i) => { if (list.children[i] !== item) list.insertBefore(item, list.children[i] ?? null); });
  while (list.children.length > items.length) list.lastElementChild.remove();
  const late = [];
  path.forEach((message, i) => {
    const view = views.get(message.id);
    if (i >= path.length - QUICK || kept.has(message.id)) view.update();
    else { view.sketch(); late.unshift(view); }
  });
  renderLate(late, talk);
  $("empty").hidden = path.length > 0;
  $("strip-row").hidden = !lastTrace();
  $("rate").textContent = isRunning ? $("rate").textContent : "";
  const button = $("send"), name = isRunning ? "Stop" : "Send";
  button.replaceChildren(icon(isRunning ? "stop" : "send"));
  button.ariaLabel = name;
  button.title = isRunning ? "Stop (Esc)" : "Send (Enter)";
  showQueue(isRunning);
  titled();
  follow();
}

function renderLate(late, of) {
  if (!late.length || of !== talk) return;
  setTimeout(() => {
    for (const view of late.splice(0, 8)) view.update();
    follow();
    renderLate(late, of);
  });
}

function showQueue(isRunning) {
  const queue = talk.chat.queue ?? [];
  $("queue").replaceChildren(...queue.map((next, i) => element("li", {},
    element("span", { class: "dim" }, isRunning ? "Next: " : "Not sent: "), element("span", { class: "grow" }, next.content || next.files[0]?.name),
    isRunning ? null : textButton("Send", () => { queue.splice(i, 1); ask(next.content, next.files); }),
    iconButton("close", "Take back", () => {
      queue.splice(i, 1);
      if (!$("text").value) composer.set(next.content, [...composer.files, ...next.files]);
      save(talk);
      show();
    }))));
}

function titled() {
  document.title = [talk.chat.title, connection.name, "hybridmoe"].filter(Boolean).slice(0, 2).join(" · ");
  sidebar.mark(talk.isNew ? null : talk.chat.id);
}

/** Keep the end in view, unless the reader has scrolled up. */
function follow() {
  const list = $("scroller");
  if (stuck) list.scrollTop = list.scrollHeight;
  $("to-end").hidden = stuck;
}

/** Say a response once to screen readers. */
function announce(message) {
  const text = message.state === "error" ? `Error: ${message.problem}` : message.content.slice(0, MAX_ANNOUNCED);
  $("announce").textContent = text || "The response has ended.";
}

function lastTrace() {
  const last = talk.path.findLast(({ id }) => traces.has(id));
  return last && traces.get(last.id);
}

/** Show the conversation that the address names. */
async function route() {
  const id = location.hash.slice(1);
  if (!id) {
    if (!talk.isNew || talk.messages.size) startNew(false);
  } else if (id !== talk.chat.id) await open(id);
}

async function open(id) {
  const running = answers.get(id);
  const [chat, messages] = running ? [] : await Promise.all([store.chat(id), store.messages(id)]);
  if (!running && !chat) return startNew();
  const opened = running?.conversation ?? new Conversation(chat, messages);
  if (location.hash.slice(1) !== id) return null; // another one was opened meanwhile
  switchTo(opened);
  return null;
}

function startNew(isPushed = true) {
  if (isPushed && location.hash) history.pushState(null, "", location.pathname);
  switchTo(new Conversation());
  $("text").focus();
}

function switchTo(conversation) {
  talk = conversation;
  views = new Map();
  $("messages").replaceChildren();
  stuck = true;
  closeSide();
  show();
  const trace = lastTrace();
  if (trace) strip.show(trace);
}

function openMap() {
  map.open(lastTrace(), talk.chat.title);
}

buildFrame({
  startNew, openMap, openSettings: () => settings.open(),
  themed: () => { const trace = lastTrace(); if (trace) strip.show(trace); },
});
$("to-end").append(icon("down"));
$("to-end").addEventListener("click", () => { stuck = true; follow(); });
$("strip-button").addEventListener("click", openMap);
$("new").addEventListener("click", () => startNew());
$("send").addEventListener("click", (event) => {
  const answer = answers.get(talk.chat.id);
  if (!answer) send();
  else if (event.detail < 2) answer.stop(); // a double click on "Send" does not stop
});
$("scroller").addEventListener("scroll", () => {
  const list = $("scroller");
  stuck = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
  $("to-end").hidden = stuck;
}, { passive: true });
new ResizeObserver(follow).observe($("scroller")); // the keyboard of a phone
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) answers.get(talk.chat.id)?.stop();
  if (event.key.toLowerCase() === "o" && event.ctrlKey && event.shiftKey) { event.preventDefault(); startNew(); }
});
addEventListener("hashchange", route);
addEventListener("popstate", route);
addEventListener("pagehide", () => rescue([...answers.values()].map(({ conversation: { chat }, message }) => ({ chat, message }))));
settings.onKey = () => connection.check();

show();
connection.check();
if (!(await store.open())) toast("This browser keeps no data: conversations are lost when the page is closed.");
await restore(store);
await sidebar.refresh();
await route();
