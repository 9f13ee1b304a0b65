// What the header says of the server: its models, whether it loads, and whether it can be reached.

import { $, counted, element } from "./dom.js";

const RETRY_MS = 1000, CHECK_MS = 20_000;

export class Connection {
  /** `onModel(model)` is called when another model is known. */
  constructor(settings, onModel) {
    Object.assign(this, { settings, onModel, shape: null, chosen: null, name: "" });
    $("models").addEventListener("change", () => {
      this.chosen = $("models").value;
      localStorage.setItem("hybridmoe.model", this.chosen);
      this.#use(this.models.find(({ id }) => id === this.chosen));
    });
  }

  /** Fetch the models; again each second while there are none. */
  async check() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.check(), (await this.#fetch()) ? CHECK_MS : RETRY_MS);
  }

  async #fetch() {
    const { key } = this.settings;
    let reply;
    try {
      reply = await fetch("/v1/models", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
    } catch {
      return this.#say("no connection", "gone");
    }
    const body = await reply.json().catch(() => ({}));
    if (reply.status === 401) {
      this.#say("enter the API key in the settings", "gone");
      return true;
    }
    if (!reply.ok || !body.data?.length) return this.#say(body.error?.message ?? `status ${reply.status}`, "waits");
    this.models = body.data;
    const kept = localStorage.getItem("hybridmoe.model");
    const model = body.data.find(({ id }) => id === kept) ?? body.data[0];
    $("models").hidden = body.data.length < 2;
    if (body.data.length > 1) {
      $("models").replaceChildren(...body.data.map(({ id }) => element("option", { value: id }, id)));
      $("models").value = model.id;
      this.chosen = model.id;
    } else this.chosen = null;
    this.#use(model);
    return true;
  }

  #use(model) {
    const { n_layer, n_dense_layers, n_experts } = model.meta ?? {};
    this.shape = n_experts ? { layers: n_layer - n_dense_layers, experts: n_experts, first: n_dense_layers } : null;
    const context = model.max_model_len ? counted(model.max_model_len, "token") : "";
    this.#say(this.models.length > 1 ? context : [model.id, context].filter(Boolean).join(" · "), "here");
    const isNew = this.name !== model.id;
    this.name = model.id;
    $("about").textContent = this.shape ? `${model.id}: ${counted(this.shape.layers, "layer")} of ${this.shape.experts} experts, on this machine. Nothing leaves it.` : `${model.id}, on this machine. Nothing leaves it.`;
    if (isNew) this.onModel(model);
  }

  #say(words, state) {
    $("model").textContent = words;
    $("dot").className = `dot ${state}`;
    return false;
  }
}
