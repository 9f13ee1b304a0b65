// Conversations in IndexedDB: a record for each conversation and one for each message, so that two
// tabs add to a conversation without overwriting each other. In memory if the browser has none.
// Expert traces are records of their own, read when they are shown; the oldest make room for others.

const CHATS = "chats", MESSAGES = "messages", TRACES = "traces";
const MAX_TRACE_BYTES = 64e6; // of all traces together
const ALL_OF = (chat) => IDBKeyRange.bound([chat], [chat, []]);

export class Store {
  #db = null;
  #memory = { [CHATS]: new Map(), [MESSAGES]: new Map(), [TRACES]: new Map() };

  /** Open the database. Returns false if nothing can be kept. */
  async open() {
    try {
      this.#db = await new Promise((done, fail) => {
        const opening = indexedDB.open("hybridmoe", 2);
        opening.onupgradeneeded = ({ oldVersion }) => {
          if (oldVersion < 1) {
            opening.result.createObjectStore(CHATS, { keyPath: "id" });
            opening.result.createObjectStore(MESSAGES, { keyPath: ["chat", "id"] });
          }
          opening.result.createObjectStore(TRACES, { keyPath: ["chat", "id"] }).createIndex("sizes", ["at", "bytes"]);
        };
        opening.onsuccess = () => done(opening.result);
        opening.onerror = () => fail(opening.error);
      });
      this.#db.onversionchange = () => this.#db.close();
      return true;
    } catch {
      return false;
    }
  }

  /** List all conversations, the latest first. */
  async chats() {
    const all = await this.#read(CHATS);
    return all.sort((a, b) => b.updated - a.updated);
  }

  /** Get a conversation, or null. */
  async chat(id) {
    return (await this.#read(CHATS, id, true)) ?? null;
  }

  /** List the messages of a conversation, or of all. */
  messages(chat) {
    return this.#read(MESSAGES, chat && ALL_OF(chat));
  }

  /** Write a conversation and messages of it. Throws if the disk is full. */
  put(chat, messages = [], traces = []) {
    return this.#write((store) => {
      if (chat) store(CHATS).put(structuredClone(chat));
      for (const message of messages) store(MESSAGES).put(structuredClone(message));
      for (const trace of traces) store(TRACES).put(trace);
    });
  }

  /** List the messages that have a trace. */
  async traced() {
    return (await this.#sizes()).map(({ key }) => key[1]);
  }

  /** Get a message's trace; undefined without. */
  trace(chat, id) {
    return this.#read(TRACES, [chat, id], true);
  }

  /** Write a trace {chat, id, at, ids, tiers, ...}. Returns the messages whose traces made room. */
  async putTrace(trace) {
    await this.put(null, [], [{ ...trace, bytes: trace.ids.byteLength + trace.tiers.byteLength }]);
    let room = MAX_TRACE_BYTES;
    const removed = (await this.#sizes()).filter(({ bytes }) => (room -= bytes) < 0).map(({ key }) => key);
    if (removed.length) await this.#write((store) => removed.forEach((key) => store(TRACES).delete(key)));
    return removed.map(([, id]) => id);
  }

  /** List keys and bytes of all traces, the latest first, without reading them. */
  #sizes() {
    if (!this.#db) {
      const all = [...this.#memory[TRACES].values()].sort((a, b) => b.at - a.at);
      return Promise.resolve(all.map(({ chat, id, bytes }) => ({ key: [chat, id], bytes })));
    }
    return new Promise((done, fail) => {
      const found = [], cursors = this.#db.transaction(TRACES).objectStore(TRACES).index("sizes").openKeyCursor(null, "prev");
      cursors.onerror = () => fail(cursors.error);
      cursors.onsuccess = () => {
        const { result } = cursors;
        if (!result) return done(found);
        found.push({ key: result.primaryKey, bytes: result.key[1] });
        return result.continue();
      };
    });
  }

  /** Remove a conversation. Returns what `put` takes to undo it. */
  async remove(id) {
    const removed = [await this.chat(id), await this.messages(id), await this.#read(TRACES, ALL_OF(id))];
    await this.#write((store) => {
      store(CHATS).delete(id);
      for (const message of removed[1]) store(MESSAGES).delete([id, message.id]);
      for (const trace of removed[2]) store(TRACES).delete([id, trace.id]);
    });
    return removed;
  }

  #read(name, range = undefined, isOne = false) {
    if (!this.#db) {
      const all = [...this.#memory[name].values()];
      if (isOne) return this.#memory[name].get(JSON.stringify(range));
      return range ? all.filter((one) => one.chat === range.lower[0]) : all;
    }
    return new Promise((done, fail) => {
      const store = this.#db.transaction(name).objectStore(name);
      const asked = isOne ? store.get(range) : store.getAll(range);
      asked.onsuccess = () => done(asked.result);
      asked.onerror = () => fail(asked.error);
    });
  }

  #write(change) {
    if (!this.#db) {
      change((name) => ({
        put: (one) => this.#memory[name].set(JSON.stringify(name === CHATS ? one.id : [one.chat, one.id]), one),
        delete: (key) => this.#memory[name].delete(JSON.stringify(key)),
      }));
      return Promise.resolve();
    }
    return new Promise((done, fail) => {
      const transaction = this.#db.transaction([CHATS, MESSAGES, TRACES], "readwrite");
      change((name) => transaction.objectStore(name));
      transaction.commit(); // at once: a reload would abort it
      transaction.oncomplete = () => done();
      transaction.onerror = transaction.onabort = () => fail(transaction.error ?? new Error("not saved"));
    });
  }
}

const FORMAT = "hybridmoe.conversations";

/** Write conversations as one JSON text; all, or those of `ids`. */
export async function exported(store, ids = null) {
  const chats = (await store.chats()).filter(({ id }) => !ids || ids.includes(id));
  const all = await Promise.all(chats.map(async (chat) => ({ ...chat, messages: await store.messages(chat.id) })));
  return JSON.stringify({ format: FORMAT, version: 1, conversations: all }, null, 1);
}

/** Add the conversations of an exported text. Returns how many. Throws on any other text. */
export async function imported(store, text) {
  let given;
  try {
    given = JSON.parse(text);
  } catch {
    throw new Error("the file is not JSON");
  }
  if (given?.format !== FORMAT || !Array.isArray(given.conversations)) {
    throw new Error("the file has no conversations of this page");
  }
  const wrong = given.conversations.findIndex((chat) => !isChat(chat));
  if (wrong >= 0) throw new Error(`conversation ${wrong + 1} of the file is damaged`);
  for (const { messages, ...chat } of given.conversations) await store.put(chat, messages);
  return given.conversations.length;
}

function isChat(chat) {
  const isText = (value) => typeof value === "string";
  if (!chat || !isText(chat.id) || !isText(chat.title) || !Number.isFinite(chat.updated)) return false;
  if (!Array.isArray(chat.messages)) return false;
  const ids = new Map(chat.messages.map((message) => [message?.id, message]));
  return chat.messages.every((message) => {
    if (!message || message.chat !== chat.id || !isText(message.id) || !isText(message.content)) return false;
    if (!["user", "assistant"].includes(message.role)) return false;
    if (!Number.isFinite(message.created)) return false;
    if (message.reasoning !== undefined && !isText(message.reasoning)) return false;
    if (message.files !== undefined && !(Array.isArray(message.files) && message.files.every((file) => isText(file?.name) && isText(file?.text)))) return false;
    if (message.calls !== undefined && !(Array.isArray(message.calls) && message.calls.every((call) => isText(call?.name) && isText(call?.arguments)))) return false;
    for (let at = message, steps = 0; at.parent !== null; steps++) { // parents are there, and no cycle
      at = ids.get(at.parent);
      if (!at || steps > chat.messages.length) return false;
    }
    return true;
  });
}
