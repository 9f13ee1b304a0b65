// Settings: how the model samples, thinks and writes. Kept in this browser; the API key in this tab.

import { $, element, textButton, toast } from "./dom.js";

// name, label, lowest, highest, step, help
const SAMPLERS = [
  ["temperature", "Temperature", 0, 2, 0.05, "0: always the likeliest token"],
  ["top_p", "Top p", 0, 1, 0.01, "likeliest tokens up to this share; 1: off"],
  ["top_k", "Top k", -1, 1e6, 1, "this many likeliest tokens; 0: all"],
  ["min_p", "Min p", 0, 1, 0.01, "at least this share of the likeliest; 0: off"],
  ["typical_p", "Typical p", 0, 1, 0.01, "1: off"],
  ["top_n_sigma", "Top n sigma", -1, 100, 0.1, "0: off"],
  ["xtc_probability", "XTC probability", 0, 1, 0.01, "0: off"],
  ["xtc_threshold", "XTC threshold", 0, 1, 0.01, ""],
  ["presence_penalty", "Presence penalty", -2, 2, 0.1, "0: off"],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.1, "0: off"],
  ["repetition_penalty", "Repetition penalty", 0.01, 100, 0.01, "1: off"],
  ["repeat_last_n", "... over last tokens", -1, 1e6, 1, "-1: all"],
  ["dry_multiplier", "DRY multiplier", 0, 100, 0.1, "0: off"],
  ["dry_base", "DRY base", 1, 100, 0.05, ""],
  ["dry_allowed_length", "DRY allowed length", 0, 1e6, 1, ""],
  ["dry_penalty_last_n", "DRY last tokens", -1, 1e6, 1, "-1: all"],
  ["seed", "Seed", -1, Number.MAX_SAFE_INTEGER, 1, "-1: a new one each time"],
];
const COMMON = 4; // samplers that are not folded
const PRESETS = {
  "The model's own": {},
  Exact: { temperature: "0" },
  Balanced: { temperature: "0.6", min_p: "0.05" },
  Creative: { temperature: "1", min_p: "0.02", xtc_probability: "0.3", xtc_threshold: "0.1" },
};
const KEY = "hybridmoe.settings", PRESET_KEY = "hybridmoe.presets";

export class Settings {
  constructor() {
    this.values = stored(KEY);
    this.inputs = new Map();
    this.onKey = () => {};
    this.#build();
  }

  get key() {
    return sessionStorage.getItem("hybridmoe.key") ?? "";
  }

  /** The request's fields. Throws what is wrong with a setting. */
  request() {
    const body = {};
    for (const [name, label] of [...SAMPLERS, ["max_tokens", "Max tokens"], ["thinking_budget", "Budget of thoughts"]]) {
      if (!this.inputs.get(name).checkValidity()) throw new Error(`${label}: ${this.inputs.get(name).validationMessage}`);
      if (!(this.values[name] ?? "")) continue;
      body[name] = Number(this.values[name]);
    }
    const stop = (this.values.stop ?? "").split("\n").filter(Boolean);
    if (stop.length) body.stop = stop.map((one) => one.replaceAll("\\n", "\n"));
    if (this.values.thinking) body.enable_thinking = this.values.thinking === "on";
    const schema = parsed("JSON schema", this.values.schema);
    if (schema) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
    const tools = parsed("Tools", this.values.tools);
    if (tools) body.tools = tools;
    return body;
  }

  get system() {
    return (this.values.system ?? "").trim();
  }

  open(id = null) {
    $("settings").showModal();
    if (id) $(id).focus();
  }

  #build() {
    const form = $("settings-form");
    const samplers = SAMPLERS.map(([name, label, min, max, step, help]) => this.#number(name, label, { min, max, step }, help));
    const key = element("input", { id: "key", type: "password", autocomplete: "off", value: this.key });
    key.addEventListener("change", () => { sessionStorage.setItem("hybridmoe.key", key.value.trim()); this.onKey(); });
    form.append(
      this.#area("system", "System message", { rows: 3 }, "How the model should behave, in each conversation."),
      element("div", { class: "fields" },
        this.#choice("thinking", "Thinking", { "": "as the model does", on: "on", off: "off" }),
        this.#number("thinking_budget", "Budget of thoughts", { min: 0, max: 1e6, step: 1 }, "tokens"),
        this.#number("max_tokens", "Max tokens", { min: 1, max: 1e7, step: 1 }, "no limit if empty")),
      element("h3", {}, "Sampling"), this.#presets(),
      element("div", { class: "fields" }, ...samplers.slice(0, COMMON)),
      element("details", {}, element("summary", {}, "All samplers"),
        element("div", { class: "fields" }, ...samplers.slice(COMMON)),
        this.#area("stop", "Stop strings", { rows: 2 }, "One a line; \\n is a line break.")),
      element("h3", {}, "Form of responses"),
      this.#area("schema", "JSON schema", { rows: 3, class: "mono", spellcheck: false }, "Every response is JSON of this schema."),
      this.#area("tools", "Tools", { rows: 3, class: "mono", spellcheck: false }, "A list in OpenAI's form. Calls are shown, not run."),
      element("h3", {}, "Connection"),
      element("label", {}, "API key", key, element("small", {}, "Kept until this tab is closed.")));
  }

  #set(name, value) {
    if (value === "") delete this.values[name];
    else this.values[name] = value;
    localStorage.setItem(KEY, JSON.stringify(this.values));
  }

  #bind(name, input) {
    input.id = name;
    input.value = this.values[name] ?? "";
    input.addEventListener("input", () => {
      if (!input.checkValidity()) input.reportValidity();
      this.#set(name, input.value);
    });
    this.inputs.set(name, input);
    return input;
  }

  #number(name, label, limits, help) {
    const input = this.#bind(name, element("input", { type: "number", placeholder: "default", ...limits, step: "any" }));
    if (Number.isInteger(limits.step)) input.step = limits.step;
    return element("label", {}, label, input, element("small", {}, help));
  }

  #area(name, label, fields, help) {
    return element("label", {}, label, this.#bind(name, element("textarea", fields)), element("small", {}, help));
  }

  #choice(name, label, choices) {
    const select = element("select", {}, ...Object.entries(choices).map(([value, text]) => element("option", { value }, text)));
    return element("label", {}, label, this.#bind(name, select));
  }

  /** Make the row of presets: built-in ones, and those saved here. */
  #presets() {
    const own = stored(PRESET_KEY);
    const select = element("select", { id: "preset", "aria-label": "Preset" });
    const fill = (chosen = "") => {
      select.replaceChildren(element("option", { value: "" }, "Preset…"), ...[...Object.keys(PRESETS), ...Object.keys(own)].map((name) => element("option", { value: name }, name)));
      select.value = chosen;
    };
    select.addEventListener("change", () => {
      const values = PRESETS[select.value] ?? own[select.value];
      if (!values) return;
      for (const [name] of SAMPLERS) {
        this.inputs.get(name).value = values[name] ?? "";
        this.#set(name, values[name] ?? "");
      }
    });
    const name = element("input", { id: "preset-name", placeholder: "name", "aria-label": "Name of the preset", maxLength: 40 });
    const save = () => {
      if (!name.value.trim() || name.value.trim() in PRESETS) return name.focus();
      own[name.value.trim()] = Object.fromEntries(SAMPLERS.map(([one]) => [one, this.values[one]]).filter(([, value]) => value));
      localStorage.setItem(PRESET_KEY, JSON.stringify(own));
      fill(name.value.trim());
      toast(`Saved the preset “${name.value.trim()}”.`, null, 3);
      name.value = "";
      return null;
    };
    const remove = () => {
      if (!(select.value in own)) return;
      delete own[select.value];
      localStorage.setItem(PRESET_KEY, JSON.stringify(own));
      fill();
    };
    fill();
    return element("div", { class: "row" }, select, textButton("Remove", remove), name, textButton("Save", save));
  }
}

function stored(key) {
  try {
    const value = JSON.parse(localStorage.getItem(key));
    return value && typeof value === "object" && !Array.isArray(value) ? value : {};
  } catch {
    return {};
  }
}

function parsed(label, text) {
  if (!text?.trim()) return null;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${label}: not JSON (${error.message})`);
  }
}
