// The list of conversations: search, open, rename, delete with undo, export and import.

import { $, counted, download, element, iconButton, textButton, toast } from "./dom.js";
import { exported, imported } from "./store.js";

const SHOWN = 60; // at first

export class Sidebar {
  /** `actions`: open(id), created(), removed(id). */
  constructor(store, actions) {
    this.store = store;
    this.actions = actions;
    this.current = null;
    this.limit = SHOWN;
    $("search").addEventListener("input", () => this.#search());
    $("import").addEventListener("change", () => this.#import());
    $("import-button").addEventListener("click", () => $("import").click());
    $("export-button").addEventListener("click", async () => this.#export(null, "conversations"));
  }

  /** Read the list again. */
  async refresh() {
    this.chats = await this.store.chats();
    this.#show();
  }

  /** Mark the current conversation. */
  mark(id) {
    this.current = id;
    for (const item of $("chats").children) item.classList.toggle("current", item.dataset.id === id);
    for (const link of $("chats").querySelectorAll("a")) link.ariaCurrent = link.closest("li").dataset.id === id ? "page" : null;
  }

  async #search() {
    const words = $("search").value.trim().toLowerCase();
    this.limit = SHOWN;
    this.found = null;
    if (words) {
      const mine = (this.searching = {});
      const messages = await this.store.messages();
      if (this.searching !== mine) return;
      const ids = messages.filter(({ content }) => content.toLowerCase().includes(words)).map(({ chat }) => chat);
      this.found = new Set([...ids, ...this.chats.filter(({ title }) => title.toLowerCase().includes(words)).map(({ id }) => id)]);
    } else this.searching = null;
    this.#show();
  }

  #show() {
    const all = this.found ? this.chats.filter(({ id }) => this.found.has(id)) : this.chats;
    const items = all.slice(0, this.limit).map((chat) => this.#item(chat));
    if (all.length > this.limit) {
      items.push(element("li", {}, textButton(`${all.length - this.limit} more`, () => { this.limit += 200; this.#show(); })));
    }
    if (!all.length) items.push(element("li", { class: "dim" }, this.found ? "Nothing found." : "No conversations yet."));
    $("chats").replaceChildren(...items);
    this.mark(this.current);
  }

  #item(chat) {
    const link = element("a", { href: `#${chat.id}`, title: chat.title }, chat.title || "Untitled");
    const menu = element("div", { class: "chat-tools" },
      iconButton("edit", `Rename ${chat.title}`, () => this.#rename(chat, item)),
      iconButton("down", `Export ${chat.title}`, () => this.#export([chat.id], "conversation")),
      iconButton("trash", `Delete ${chat.title}`, () => this.#remove(chat)));
    const item = element("li", { data: { id: chat.id } }, link, menu);
    return item;
  }

  #rename(chat, item) {
    const box = element("input", { value: chat.title, "aria-label": "Title", maxLength: 200 });
    let isOver = false;
    const end = async (isKept) => {
      if (isOver) return;
      isOver = true;
      if (isKept && box.value.trim()) await this.actions.renamed(chat.id, box.value.trim());
      this.refresh();
    };
    box.addEventListener("blur", () => end(true));
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") { event.stopPropagation(); end(false); }
    });
    item.replaceChildren(box);
    box.select();
  }

  async #remove(chat) {
    const isCurrent = chat.id === this.current;
    await this.actions.removing(chat.id);
    const removed = await this.store.remove(chat.id);
    if (isCurrent) this.actions.created();
    await this.refresh();
    toast(`Deleted “${chat.title}”.`, { name: "Undo", run: async () => {
      await this.store.put(...removed);
      await this.refresh();
      if (isCurrent) this.actions.open(chat.id);
    } });
  }

  async #export(ids, name) {
    const text = await exported(this.store, ids);
    download(`hybridmoe-${name}.json`, new Blob([text], { type: "application/json" }));
  }

  async #import() {
    const [file] = $("import").files;
    $("import").value = "";
    if (!file) return;
    try {
      const count = await imported(this.store, await file.text());
      toast(`Imported ${counted(count, "conversation")}.`, null, 4);
    } catch (error) {
      toast(`Not imported: ${error.message}.`);
    }
    await this.refresh();
    this.actions.imported();
  }
}
