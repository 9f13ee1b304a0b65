// The messages of a conversation on the page: rendered once, the latest first, the end kept in view.

import { $, icon } from "./dom.js";
import { MessageView } from "./message.js";

const QUICK = 6; // messages that are rendered at once; the others follow
const AT_ONCE = 8; // of the others
const NEAR = 60; // pixels from the end that count as the end

export class Transcript {
  #views = new Map(); // by message
  #due = new Set(); // messages that have grown
  #late = []; // views that are not rendered yet
  #isAtEnd = true;

  /** `actions`: see MessageView. `drawn()`: called with each frame of what has grown. */
  constructor(actions, drawn) {
    Object.assign(this, { actions, drawn });
    this.list = $("messages");
    this.scroller = $("scroller");
    $("to-end").append(icon("down"));
    $("to-end").addEventListener("click", () => this.toEnd());
    this.scroller.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = this.scroller;
      this.#isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR;
      $("to-end").hidden = this.#isAtEnd;
    }, { passive: true });
    new ResizeObserver(() => this.#follow()).observe(this.scroller); // the keyboard of a phone
  }

  /** Show messages. Those already shown keep their elements. */
  show(path) {
    const kept = this.#views;
    this.#views = new Map(path.map((message) => [message.id, kept.get(message.id) ?? new MessageView(message, this.actions)]));
    const views = [...this.#views.values()], { list } = this;
    views.forEach(({ item }, i) => { if (list.children[i] !== item) list.insertBefore(item, list.children[i] ?? null); });
    while (list.children.length > views.length) list.lastElementChild.remove();
    const isWaiting = this.#late.length > 0, before = new Set(this.#late);
    this.#late = [];
    views.forEach((view, i) => {
      if (i >= views.length - QUICK || (kept.has(view.message.id) && !before.has(view))) return view.update();
      view.sketch();
      return this.#late.unshift(view);
    });
    if (!isWaiting) this.#renderLate();
    this.#follow();
  }

  /** Remove all messages. */
  clear() {
    this.#views = new Map();
    this.#late = [];
    this.list.replaceChildren();
    this.#isAtEnd = true;
  }

  /** Show a message anew, with the next frame. */
  update({ id }) {
    if (!this.#due.size) requestAnimationFrame(() => this.#showDue());
    this.#due.add(id);
  }

  toEnd() {
    this.#isAtEnd = true;
    this.#follow();
  }

  #showDue() {
    for (const id of this.#due) this.#views.get(id)?.update();
    this.#due.clear();
    this.drawn();
    this.#follow();
  }

  #renderLate() {
    if (!this.#late.length) return;
    setTimeout(() => {
      for (const view of this.#late.splice(0, AT_ONCE)) view.update();
      this.#follow();
      this.#renderLate();
    });
  }

  /** Keep the end in view, unless the reader has scrolled up. */
  #follow() {
    if (this.#isAtEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
    $("to-end").hidden = this.#isAtEnd;
  }
}
