// A message on the page: text, thoughts, tool calls, files, what went wrong, and its buttons.

import { isEmpty } from "./conversation.js";
import { copy, element, iconButton, textButton } from "./dom.js";
import { MarkdownView } from "./markdown.js";

const LONG_CHARS = 2000, LONG_LINES = 16; // of a question that is folded
const NOTES = { length: "Cut off at the token limit.", stopped: "Stopped." };

/** `actions`: what the buttons do and need to know: see chat.js. */
export class MessageView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    const isUser = message.role === "user";
    this.body = element("div", { class: "body" });
    this.foot = element("div", { class: "foot" });
    this.item = element("li", { class: message.role, data: { id: message.id } },
      element("h2", { class: "off-screen" }, isUser ? "You" : "hybridmoe"), this.body, this.foot);
    this.parts = {};
    this.isPlain = true;
  }

  /** Show the text unformatted: quick, for what is not in view yet. */
  sketch() {
    this.#part("content", "content plain").textContent = this.message.content;
  }

  /** Show the message as it is now. */
  update() {
    const { message } = this;
    if (message.role === "user") this.#question();
    else this.#response();
    this.item.classList.toggle("running", message.state === "streaming");
    this.item.classList.toggle("failed", message.role === "user" && this.actions.isLeftOut(message));
    this.#buttons();
  }

  #part(name, className, kind = "div") {
    if (this.parts[name]) return this.parts[name];
    const made = (this.parts[name] = element(kind, { class: className }));
    const order = ["files", "thoughts", "content", "fold", "calls", "problem", "stats"];
    const later = order.slice(order.indexOf(name) + 1).map((one) => this.parts[one]).find(Boolean);
    this.body.insertBefore(made, later ?? null);
    return made;
  }

  #drop(name) {
    this.parts[name]?.remove();
    delete this.parts[name];
  }

  #question() {
    const { content, files = [] } = this.message;
    const text = this.#part("content", "content plain");
    text.textContent = content;
    const isLong = content.length > LONG_CHARS || content.split("\n").length > LONG_LINES;
    text.classList.toggle("folded", isLong && !this.isUnfolded);
    if (isLong) this.#fold();
    if (!files.length) return;
    this.#part("files", "files").replaceChildren(...files.map((file) => element("details", { class: "file" },
      element("summary", {}, `${file.name} · ${size(file.text)}`), element("pre", { tabIndex: 0 }, file.text))));
  }

  /** Make the button that shows all of a long question, or its beginning. */
  #fold() {
    const name = this.isUnfolded ? "Show less" : "Show all";
    this.#part("fold", "fold").replaceChildren(textButton(name, () => { this.isUnfolded = !this.isUnfolded; this.update(); }));
  }

  #response() {
    const { message } = this, isRunning = message.state === "streaming";
    if (message.reasoning) this.#thoughts(isRunning && !message.content);
    if (this.isPlain) {
      this.#drop("content");
      this.isPlain = false;
      this.markdown = null;
    }
    if (message.content) {
      this.markdown ??= new MarkdownView(this.#part("content", "content prose"));
      this.markdown.update(message.content, !isRunning);
    } else this.#drop("content");
    if (message.calls?.length) this.#calls(message.calls);
    if (isRunning && isEmpty(message)) {
      const wait = this.#part("problem", "wait");
      wait.replaceChildren(element("span", { class: "dots" }), this.actions.waiting(message));
    } else if (message.state === "error") this.#problem();
    else if (NOTES[message.state]) this.#note(NOTES[message.state]);
    else if (message.state === "done" && isEmpty(message)) this.#note("The response is empty.");
    else this.#drop("problem");
    if (message.stats && !isRunning) this.#stats(message.stats);
    else this.#drop("stats");
  }

  #thoughts(isThinking) {
    const { message } = this;
    if (!this.thoughts) {
      const box = this.#part("thoughts", "thoughts", "details");
      this.thoughts = { title: element("summary"), text: document.createTextNode("") };
      box.append(this.thoughts.title, element("div", { class: "reasoning" }, this.thoughts.text));
    }
    this.thoughts.title.textContent = isThinking ? "Thinking…" : "Thoughts";
    const shown = this.thoughts.text;
    if (message.reasoning.startsWith(shown.data)) shown.appendData(message.reasoning.slice(shown.length));
    else shown.data = message.reasoning;
  }

  #calls(calls) {
    const box = this.#part("calls", "calls");
    calls.forEach((call, i) => {
      const shown = box.children[i] ?? box.appendChild(element("div", { class: "call" }, element("strong"), element("pre", { tabIndex: 0 })));
      shown.firstChild.textContent = `Tool call: ${call.name}`;
      shown.lastChild.textContent = pretty(call.arguments);
    });
  }

  #problem() {
    const { message, actions } = this;
    const box = this.#part("problem", "error");
    box.className = "error";
    box.replaceChildren(element("p", {}, message.problem), element("div", { class: "row" },
      !isEmpty(message) && actions.isLast(message) ? textButton("Continue", () => actions.resume(message)) : null,
      textButton("Retry", () => actions.again(message)),
      /key/.test(message.problem) && message.isDenied ? textButton("Enter key", actions.enterKey) : null));
  }

  #note(words) {
    const { message, actions } = this;
    const box = this.#part("problem", "note");
    box.className = "note";
    const canResume = !isEmpty(message) && !message.calls?.length && actions.isLast(message);
    box.replaceChildren(element("span", {}, words),
      canResume ? textButton("Continue", () => actions.resume(message)) : textButton("Retry", () => actions.again(message)));
  }

  #stats(stats) {
    const box = this.#part("stats", "stats", "details");
    box.replaceChildren(element("summary", {}, stats.line), element("dl", {},
      ...Object.entries(stats.rows).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])));
  }

  #buttons() {
    const { message, actions } = this;
    if (message.state === "streaming") return this.foot.replaceChildren();
    const siblings = actions.siblings(message), at = siblings.indexOf(message);
    const arrows = siblings.length < 2 ? [] : [element("span", { class: "branches" },
      iconButton("left", "Previous branch", () => actions.branch(siblings[at - 1]), { disabled: at === 0 }),
      element("span", { "aria-label": `branch ${at + 1} of ${siblings.length}`, role: "img" }, `${at + 1}/${siblings.length}`),
      iconButton("right", "Next branch", () => actions.branch(siblings[at + 1]), { disabled: at === siblings.length - 1 }))];
    const isUser = message.role === "user";
    const copying = iconButton("copy", isUser ? "Copy message" : "Copy response", () => copy(message.content, copying));
    const other = isUser ? iconButton("edit", "Edit", () => this.edit()) : iconButton("again", "Regenerate", () => actions.again(message));
    const traced = !isUser && actions.isTraced(message) ? [iconButton("map", "Experts of this response", () => actions.openMap(message))] : [];
    this.foot.replaceChildren(...(message.content ? [copying] : []), other, ...traced, ...arrows);
    return null;
  }

  /** Edit the question in place; sending makes a branch. */
  edit() {
    const { message, actions } = this;
    const box = element("textarea", { value: message.content, "aria-label": "Edit message", class: "grows" });
    const close = () => { form.replaceWith(this.body); this.foot.hidden = false; };
    const submit = () => {
      const text = box.value.trim();
      if (!text) return;
      close();
      actions.edit(message, text);
    };
    const form = element("div", { class: "editing" }, box, element("div", { class: "row" },
      textButton("Send", submit, { class: "primary" }), textButton("Cancel", () => { close(); actions.focus(); })));
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); close(); actions.focus(); }
      if (event.key === "Enter" && event.target === box && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
    });
    this.foot.hidden = true;
    this.body.replaceWith(form);
    box.focus();
    box.setSelectionRange(box.value.length, box.value.length);
  }
}

function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}

export function size(text) {
  const bytes = new Blob([text]).size;
  return bytes < 1000 ? `${bytes} B` : bytes < 1e6 ? `${(bytes / 1000).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
