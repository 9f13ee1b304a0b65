// Chat page: joins the conversation, its responses, the list of conversations and the settings.

import { Answer } from "./answer.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { Conversation, isEmpty } from "./conversation.js";
import { $, element, icon, iconButton, textButton, toast } from "./dom.js";
import { buildFrame, closeSide, openSearch } from "./frame.js";
import { Strip } from "./heat.js";
import { MapView } from "./mapview.js";
import { rescue, restore } from "./rescue.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";
import { Traces } from "./traces.js";
import { Transcript } from "./transcript.js";

const MAX_ANNOUNCED = 1000;

const store = new Store(), settings = new Settings(), traces = new Traces(store);
const strip = new Strip($("strip")), map = new MapView(() => showStrip());
const answers = new Map(); // running, by conversation
let talk = new Conversation();

const connection = new Connection(settings, (model) => {
  const isDemo = model?.meta?.name === "hybridmoe demo";
  const examples = isDemo
    ? ["What is 47 + 38?", "Tell me a joke.", "What is the capital of France?", "Why is the sky blue?"]
    : ["Explain a mixture of experts in three sentences.", "Write a Python function that merges overlapping intervals.", "Compare TCP and UDP in a table.", "Draft a short, polite reminder of an unpaid invoice."];
  $("examples").replaceChildren(...examples.map((text) => textButton(text, () => { composer.set(text); send(); })));
  titled();
});
const transcript = new Transcript({
  edit: (message, text) => ask(text, message.files ?? [], message),
  again: (message) => respond(talk.messages.get(message.parent)),
  resume: (message) => respond(null, message),
  branch: (message) => { talk.show(message); save(talk); show(); },
  siblings: (message) => talk.siblings(message),
  isLast: (message) => talk.chat.leaf === message.id,
  isLeftOut: (message) => talk.children(message.id).some((one) => one.role === "assistant" && isEmpty(one) && ["error", "stopped"].includes(one.state)),
  waiting: (message) => answers.get(message.chat)?.waiting ?? "",
  isTraced: (message) => traces.has(message),
  openMap,
  enterKey: () => settings.open("key"),
  focus: () => $("text").focus(),
}, () => { $("rate").textContent = answers.get(talk.chat.id)?.rate ?? ""; });
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
  traces.drop(message);
  const answer = new Answer(conversation, message, body, settings.key, watch, () => save(conversation, [message], false));
  answers.set(conversation.chat.id, answer);
  message.state = "streaming";
  save(conversation, question ? [question, message] : [message]);
  transcript.toEnd();
  show();
  answer.ended = answer.run();
  await answer.ended;
  answers.delete(conversation.chat.id);
  await Promise.all([save(conversation, [message]), traces.save(message)]);
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
    if (message.chat === talk.chat.id) transcript.update(message);
  },
  experts(message, experts, tiers) {
    if (!connection.shape) return;
    const trace = traces.add(message, connection.shape, experts, tiers);
    if (message.chat !== talk.chat.id) return;
    $("strip-row").hidden = false;
    strip.show(trace);
    map.show(trace);
  },
  chosen: (message) => traces.live(message)?.summary,
};

setInterval(() => {
  const answer = answers.get(talk.chat.id);
  if (answer && isEmpty(answer.message)) transcript.update(answer.message);
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

/** Show the whole conversation. */
function show() {
  const path = talk.path, isRunning = answers.has(talk.chat.id);
  transcript.show(path);
  $("empty").hidden = path.length > 0;
  $("rate").textContent = isRunning ? $("rate").textContent : "";
  const button = $("send"), name = isRunning ? "Stop" : "Send";
  button.replaceChildren(icon(isRunning ? "stop" : "send"));
  button.ariaLabel = name;
  button.title = isRunning ? "Stop (Esc)" : "Send (Enter)";
  showQueue(isRunning);
  showStrip();
  titled();
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

/** Name the page after the conversation and the model. */
function titled() {
  document.title = [talk.chat.title, connection.name, "hybridmoe"].filter(Boolean).slice(0, 2).join(" · ");
  sidebar.mark(talk.isNew ? null : talk.chat.id);
}

/** Say a response once to screen readers. */
function announce(message) {
  const text = message.state === "error" ? `Error: ${message.problem}` : message.content.slice(0, MAX_ANNOUNCED);
  $("announce").textContent = text || "The response has ended.";
}

const lastTraced = () => talk.path.findLast((message) => traces.has(message));

async function showStrip() {
  const last = lastTraced();
  $("strip-row").hidden = !last;
  const trace = last && await traces.get(last);
  if (trace && last === lastTraced()) strip.show(trace);
}

/** Open the map of a response, or of the latest one that has a trace. */
async function openMap(message = lastTraced()) {
  map.open(message ? await traces.get(message) : null, [talk.chat.title, connection.name].filter(Boolean).join(" · "));
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
  transcript.clear();
  closeSide();
  show();
}

buildFrame({ startNew, openMap: () => openMap(), openSettings: () => settings.open(), themed: () => { showStrip(); map.show(map.trace); } });
$("strip-button").addEventListener("click", () => openMap());
$("new").addEventListener("click", () => startNew());
$("send").addEventListener("click", (event) => {
  const answer = answers.get(talk.chat.id);
  if (!answer) send();
  else if (event.detail < 2) answer.stop(); // a double click on "Send" does not stop
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) answers.get(talk.chat.id)?.stop();
  if (event.key.toLowerCase() === "o" && event.ctrlKey && event.shiftKey) { event.preventDefault(); startNew(); }
  if (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey) && !document.querySelector("dialog[open]")) { event.preventDefault(); openSearch(); }
});
addEventListener("hashchange", route);
addEventListener("popstate", route);
addEventListener("pagehide", () => {
  rescue([...answers.values()].map(({ conversation: { chat }, message }) => ({ chat, message })));
  for (const { message } of answers.values()) traces.save(message);
});
settings.onKey = () => connection.check();

show();
connection.check();
if (!(await store.open())) toast("This browser keeps no data: conversations are lost when the page is closed.");
await restore(store);
await traces.open();
await sidebar.refresh();
await route();
