// The box for the next message: attached text files, waiting messages, recalled ones, a kept draft.

import { $, element, iconButton, toast } from "./dom.js";
import { size } from "./message.js";

const MAX_BYTES = 2_000_000; // of a file
const LONG_PASTE = 5000; // characters that become a file
const DRAFT = "hybridmoe.draft";

export class Composer {
  /** `recall()`: the messages sent so far in this conversation, the oldest first. */
  constructor(send, recall) {
    this.files = [];
    this.send = send;
    this.recall = recall;
    this.back = 0; // messages recalled
    const box = (this.box = $("text"));
    box.value = sessionStorage.getItem(DRAFT) ?? "";
    box.addEventListener("input", () => { this.back = 0; this.#changed(); });
    box.addEventListener("keydown", (event) => this.#key(event));
    $("ask").addEventListener("submit", (event) => event.preventDefault());
    $("ask-left").append(iconButton("clip", "Attach text files", () => $("attach").click()));
    $("attach").addEventListener("change", () => { this.attach([...$("attach").files]); $("attach").value = ""; });
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => { event.preventDefault(); this.attach([...event.dataTransfer.files]); });
    box.addEventListener("paste", (event) => {
      const files = [...event.clipboardData.files];
      const text = event.clipboardData.getData("text/plain");
      if (!files.length && text.length > LONG_PASTE) files.push(new File([text], "pasted.txt"));
      if (files.length) { event.preventDefault(); this.attach(files); }
    });
    this.#changed();
  }

  /** Take what was written: {content, files}; null if there is nothing. */
  take() {
    const content = this.box.value.trim(), files = this.files;
    if (!content && !files.length) return null;
    this.set("", []);
    return { content, files };
  }

  set(text, files = this.files) {
    this.box.value = text;
    this.files = files;
    this.back = 0;
    this.#changed();
  }

  async attach(given) {
    for (const file of given) {
      if (file.size > MAX_BYTES) { toast(`${file.name}: ${(file.size / 1e6).toFixed(1)} MB; at most 2 MB of text can be attached.`); continue; }
      const bytes = new Uint8Array(await file.arrayBuffer());
      try {
        if (bytes.includes(0)) throw new TypeError("binary");
        this.files.push({ name: file.name, text: new TextDecoder("utf-8", { fatal: true }).decode(bytes) });
      } catch {
        toast(`${file.name} is not a text file.`);
      }
    }
    this.#changed();
    this.box.focus();
  }

  #changed() {
    const { box } = this;
    sessionStorage.setItem(DRAFT, box.value);
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight + 2, 0.4 * innerHeight)}px`;
    $("files").replaceChildren(...this.files.map((file, i) => element("span", { class: "chip" }, `${file.name} · ${size(file.text)}`,
      iconButton("close", `Remove ${file.name}`, () => { this.files.splice(i, 1); this.#changed(); }))));
  }

  #key(event) {
    const { box } = this;
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.send();
    }
    const step = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!step || event.shiftKey || (box.value && !this.back) || (step < 0 && !this.back)) return;
    const sent = this.recall(), back = this.back + step;
    if (back > sent.length) return;
    event.preventDefault();
    this.set(back ? sent.at(-back) : "");
    this.back = back;
  }
}
