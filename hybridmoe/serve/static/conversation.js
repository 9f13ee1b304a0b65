// A conversation as a tree of messages: another question or response is a branch beside the first.

/** Messages are {id, chat, parent, role, content, created, reasoning?, calls?, files?, state?, problem?, stats?}.
 * `state` of a response: "streaming", "done", "length", "stopped", "error" (with `problem`).
 */
export class Conversation {
  constructor(chat = null, messages = []) {
    this.isNew = chat === null;
    this.chat = chat ?? { id: newId(), title: "", created: Date.now(), updated: Date.now(), leaf: null, queue: [] };
    this.messages = new Map(messages.map((message) => [message.id, message]));
    for (const message of messages) {
      if (message.state === "streaming") Object.assign(message, { state: "error", problem: "cut off: the page was left before the response ended" });
    }
    if (!this.messages.has(this.chat.leaf)) this.chat.leaf = messages.length ? this.latest(null)?.id ?? null : null;
  }

  /** The messages from the first to the current last one. */
  get path() {
    const path = [];
    for (let at = this.messages.get(this.chat.leaf); at; at = this.messages.get(at.parent)) path.unshift(at);
    return path;
  }

  children(parent) {
    return [...this.messages.values()].filter((one) => one.parent === parent).sort((a, b) => a.created - b.created);
  }

  /** The branches at a message, itself among them. */
  siblings(message) {
    return this.children(message.parent).filter(({ role }) => role === message.role);
  }

  /** Follow the newest branch below a message (null: from the start) to its end. */
  latest(id) {
    let at = id === null ? null : this.messages.get(id);
    for (let next; (next = this.children(at?.id ?? null).at(-1)); ) at = next;
    return at;
  }

  /** Show another branch. */
  show(message) {
    this.chat.leaf = this.latest(message.id).id;
  }

  /** Add a question after the current end, or beside `beside`. Returns it. */
  ask(content, files = [], beside = null) {
    const parent = beside ? beside.parent : this.chat.leaf;
    const message = this.#add({ parent, role: "user", content });
    if (files.length) message.files = files;
    if (!this.chat.title) this.chat.title = titleOf(content || files[0]?.name || "");
    return message;
  }

  /** Add an empty response to a question; one that failed with nothing to show is used again. */
  respond(question) {
    const empty = this.children(question.id).find((one) => one.role === "assistant" && isEmpty(one));
    if (!empty) return this.#add({ parent: question.id, role: "assistant", content: "", state: "streaming" });
    Object.assign(empty, { state: "streaming", problem: undefined });
    this.chat.leaf = empty.id;
    return empty;
  }

  /** The messages up to a response as the endpoint takes them. What failed without a response is left out. */
  sent(response, isContinued = false) {
    const path = [];
    for (let at = response; at; at = this.messages.get(at.parent)) path.unshift(at);
    const last = isContinued ? path : path.slice(0, -1);
    return last.flatMap((message, i) => {
      if (message.role === "user") {
        const next = last[i + 1];
        return next && isEmpty(next) ? [] : [{ role: "user", content: withFiles(message) }];
      }
      return isEmpty(message) ? [] : [toSend(message)];
    });
  }

  #add(fields) {
    const message = { id: newId(), chat: this.chat.id, created: Date.now(), ...fields };
    while ([...this.messages.values()].some(({ created }) => created === message.created)) message.created += 0.001;
    this.messages.set(message.id, message);
    this.chat.leaf = message.id;
    this.chat.updated = Date.now();
    return message;
  }
}

function toSend({ content, reasoning, calls }) {
  const message = { role: "assistant", content };
  if (reasoning) message.reasoning_content = reasoning;
  if (calls?.length) {
    message.tool_calls = calls.map((call) => ({
      id: call.id, type: "function", function: { name: call.name, arguments: call.arguments || "{}" },
    }));
  }
  return message;
}

/** True for a response with nothing to show. */
export function isEmpty(message) {
  return message.role === "assistant" && !message.content && !message.reasoning && !message.calls?.length;
}

/** The text of a question with its files before it. */
export function withFiles({ content, files = [] }) {
  const parts = files.map(({ name, text }) => {
    const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((ticks) => ticks.length));
    const fence = "`".repeat(longest + 1);
    return `File ${name}:\n${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
  });
  return [...parts, content].filter(Boolean).join("\n\n");
}

function titleOf(text) {
  const line = text.trim().split("\n")[0].replace(/\s+/g, " ");
  return line.length > 60 ? `${line.slice(0, 57).trimEnd()}…` : line;
}

export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
