// Expert traces of responses: in memory while they grow, in the store with their conversation.

import { ExpertTrace } from "./experts.js";

const SAVE_TOKENS = 64; // between two writes of a growing trace
const MAX_LIVE = 20; // traces in memory

export class Traces {
  #store;
  #live = new Map(); // by message
  #kept = new Set(); // messages with a trace in the store

  constructor(store) {
    this.#store = store;
  }

  /** Learn which responses have a trace in the store. */
  async open() {
    this.#kept = new Set(await this.#store.traced());
  }

  has({ id }) {
    return this.#live.has(id) || this.#kept.has(id);
  }

  /** Get a response's trace, or null. */
  async get(message) {
    if (!this.#live.has(message.id) && this.#kept.has(message.id)) {
      const found = await this.#store.trace(message.chat, message.id);
      if (found) this.#hold(message.id, new ExpertTrace(found));
      else this.#kept.delete(message.id);
    }
    return this.#live.get(message.id) ?? null;
  }

  /** Get what is in memory of a response's trace. */
  live({ id }) {
    return this.#live.get(id);
  }

  /** Forget a response's trace: it is generated anew. */
  drop({ id }) {
    this.#live.delete(id);
    this.#kept.delete(id);
  }

  /** Add tokens to the trace of a response. Returns the trace. */
  add(message, shape, experts, tiers) {
    const trace = this.#live.get(message.id) ?? this.#hold(message.id, new ExpertTrace(shape));
    trace.add(experts, tiers);
    if (trace.length - (trace.saved ?? 0) >= SAVE_TOKENS) this.save(message);
    return trace;
  }

  /** Write a trace to the store, which may drop older ones. What cannot be kept stays in memory. */
  async save(message) {
    const trace = this.#live.get(message.id);
    if (!trace || trace.saved === trace.length) return;
    trace.saved = trace.length;
    try {
      const removed = await this.#store.putTrace({ chat: message.chat, id: message.id, at: Date.now(), ...trace.packed() });
      this.#kept.add(message.id);
      for (const id of removed) this.#kept.delete(id);
    } catch {
      // no space
    }
  }

  #hold(id, trace) {
    this.#live.set(id, trace);
    if (this.#live.size > MAX_LIVE) this.#live.delete(this.#live.keys().next().value);
    return trace;
  }
}
