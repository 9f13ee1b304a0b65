// One response under way: reads the stream into its message, and saves the message as it grows.

import { counted } from "./dom.js";
import { events } from "./stream.js";
import { tierCounts, tierRows } from "./tiers.js";

const SAVE_MS = 400;

/** `watch`: update(message), experts(message, ids, tiers), chosen(message). `save(message)`: keeps it. */
export class Answer {
  constructor(conversation, message, body, key, watch, save) {
    Object.assign(this, { conversation, message, body, key, watch, save });
    this.abort = new AbortController();
    this.began = performance.now();
    this.reading = "";
    this.tokens = this.first = this.savedAt = 0;
  }

  /** Read to the end. Never throws: the message says what went wrong. */
  async run() {
    const { message } = this;
    message.state = "streaming";
    message.stats = message.problem = undefined;
    message.isDenied = false;
    try {
      await this.#read();
    } catch (error) {
      message.state = error.name === "AbortError" ? "stopped" : "error";
      message.problem = message.state === "error" ? error.message : undefined;
      message.isDenied = error.status === 401;
    }
  }

  stop() {
    this.abort.abort();
  }

  /** What is shown before the first token. */
  get waiting() {
    const seconds = Math.floor((performance.now() - this.began) / 1000);
    return `${this.reading || "Reading the prompt"}${seconds ? ` · ${seconds} s` : ""}`;
  }

  get rate() {
    const seconds = (performance.now() - this.first) / 1000;
    return this.tokens > 1 && seconds > 0 ? `${((this.tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
  }

  async #read() {
    const { message, key } = this, before = await tierCounts(key);
    let reason = null, timings = null;
    for await (const event of events("/v1/chat/completions", this.body, { key, signal: this.abort.signal })) {
      if (event.prompt_progress) this.reading = `Reading the prompt: ${event.prompt_progress.processed} of ${counted(event.prompt_progress.total, "token")}`;
      if (event.experts) {
        this.first ||= performance.now();
        this.tokens += event.experts.length;
        this.watch.experts(message, event.experts, event.expert_tiers);
      }
      const { delta = {}, finish_reason } = event.choices?.[0] ?? {};
      message.content += delta.content ?? "";
      if (delta.reasoning_content) message.reasoning = (message.reasoning ?? "") + delta.reasoning_content;
      for (const call of delta.tool_calls ?? []) addCall(message, call);
      reason = finish_reason ?? reason;
      timings = event.timings ?? timings;
      this.watch.update(message);
      if (performance.now() - this.savedAt > SAVE_MS) {
        this.savedAt = performance.now();
        this.save(message);
      }
    }
    message.state = reason === "length" ? "length" : "done";
    if (timings) message.stats = this.#stats(timings, tierRows(before, await tierCounts(key)));
  }

  #stats(timings, tiers) {
    const { predicted_n, predicted_per_second, prompt_n, cache_n, prompt_per_second } = timings;
    const rows = {
      prompt: `${counted(prompt_n, "token")}, ${cache_n} cached, ${prompt_per_second.toFixed(0)} tokens/s`,
      response: `${counted(predicted_n, "token")}, ${predicted_per_second.toFixed(1)} tokens/s`,
    };
    if (this.first) rows["first token"] = `${((this.first - this.began) / 1000).toFixed(2)} s`;
    const chosen = this.watch.chosen(this.message);
    if (chosen) rows.experts = chosen;
    return { line: `${predicted_per_second.toFixed(1)} tokens/s · ${counted(predicted_n, "token")}`, rows: { ...rows, ...tiers } };
  }
}

function addCall(message, { index = 0, id, function: given = {} }) {
  message.calls ??= [];
  const call = (message.calls[index] ??= { id: id ?? "", name: "", arguments: "" });
  if (id) call.id = id;
  call.name += given.name ?? "";
  call.arguments += given.arguments ?? "";
}
