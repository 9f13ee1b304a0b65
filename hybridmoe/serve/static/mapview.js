// The expert map in its own view: a slider over the response's tokens, a cursor, export as PNG.

import { $, counted, download, icon, iconButton } from "./dom.js";
import { TIERS } from "./experts.js";
import { chooseMode, isDark, modeOf } from "./heat.js";
import { MapLayout, paintMap, percent } from "./mappicture.js";

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class MapView {
  /** `recoloured()`: called when colours mean something else. */
  constructor(recoloured = () => {}) {
    this.dialog = $("map");
    this.canvas = $("experts");
    this.slider = $("map-token");
    this.trace = null;
    this.cursor = null; // {layer, expert}
    this.isAtEnd = true;
    this.slider.addEventListener("input", () => { this.#pause(); this.isAtEnd = this.slider.value === this.slider.max; this.draw(); });
    $("map-span").addEventListener("change", () => this.draw());
    $("map-colour").addEventListener("change", () => { chooseMode($("map-colour").value); this.draw(); recoloured(); });
    for (const kind of ["pointerdown", "pointermove"]) this.canvas.addEventListener(kind, (event) => this.#point(event));
    this.canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.#set(null));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.dialog.addEventListener("close", () => this.#pause());
    this.play = iconButton("play", "Play", () => this.#play());
    $("map-tools").append(this.play, iconButton("down", "Save as PNG", () => this.#save()));
    addEventListener("resize", () => this.dialog.open && this.draw());
  }

  /** Open the view of a response's experts. */
  open(trace, title) {
    this.title = title;
    this.isAtEnd = true;
    this.dialog.showModal();
    this.#set(null);
    this.show(trace);
  }

  /** Show a trace, which may have grown. */
  show(trace) {
    this.trace = trace;
    if (!this.dialog.open || this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => { this.isDue = false; this.draw(); });
  }

  draw() {
    const { trace, slider } = this, isEmpty = !trace?.length;
    $("map-empty").hidden = !isEmpty;
    $("map-body").hidden = isEmpty;
    if (isEmpty) return;
    slider.max = trace.length;
    if (this.isAtEnd) slider.value = slider.max;
    $("map-at").textContent = `token ${slider.value} of ${slider.max}`;
    const end = Number(slider.value), span = $("map-span").value;
    this.from = span === "all" ? 0 : Math.max(0, end - Number(span));
    this.tokens = end - this.from;
    this.counts = trace.counts(this.from, end);
    this.mode = $("map-colour").value = modeOf(trace);
    this.layout = new MapLayout(trace, $("map-frame").clientWidth, innerHeight);
    paintMap(this.canvas, this.layout, this.counts, { mode: this.mode, dark: isDark(), ratio: devicePixelRatio || 1 });
    this.canvas.style.width = `${this.layout.wide}px`;
    this.canvas.style.height = `${this.layout.tall}px`;
    this.#set(this.cursor);
  }

  /** Move the cursor, and say what is under it. */
  #set(cursor) {
    this.cursor = cursor;
    const mark = $("map-mark"), { layout } = this;
    mark.hidden = !cursor;
    if (cursor) {
      const [x, y] = layout.place(cursor.layer, cursor.expert);
      Object.assign(mark.style, { left: `${x - 2}px`, top: `${y - 2}px`, width: `${layout.cell + 3}px`, height: `${layout.high + 3}px` });
    }
    $("expert").textContent = this.trace?.length && this.counts ? this.#words() : "";
  }

  #words() {
    const { cursor, counts, tokens, trace } = this;
    const by = (numbers) => TIERS.map((name, tier) => numbers[tier] && `${name} ${numbers[tier]}`).filter(Boolean).join(", ");
    if (!cursor) {
      const all = counts.sums.reduce((a, b) => a + b, 0) || 1;
      const shares = counts.sums.map((sum) => (sum ? percent(sum / all) : ""));
      return `Served by ${by(shares)}. Point at a square, or use the arrow keys.`;
    }
    const at = cursor.layer * trace.experts + cursor.expert, count = counts.total(at);
    const where = count ? ` · ${by(counts.byTier.map((one) => one[at]))}` : "";
    return `layer ${trace.first + cursor.layer}, expert ${cursor.expert}: ${count} of ${counted(tokens, "token")} (${((100 * count) / tokens).toFixed(1)} %)${where}`;
  }

  #point(event) {
    if (!this.layout) return;
    const box = this.canvas.getBoundingClientRect();
    this.#set(this.layout.at(event.clientX - box.left, event.clientY - box.top));
  }

  #key(event) {
    if (!STEPS[event.key] || !this.trace) return;
    event.preventDefault();
    const [x, y] = STEPS[event.key].map((step) => step * (event.shiftKey ? 10 : 1));
    const [layers, experts] = this.layout.isUpright ? [x, y] : [y, x];
    const keep = (value, end) => Math.max(0, Math.min(end - 1, value));
    const { cursor, trace } = this;
    this.#set(cursor ? { layer: keep(cursor.layer + layers, trace.layers), expert: keep(cursor.expert + experts, trace.experts) } : { layer: 0, expert: 0 });
    $("map-mark").scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  /** Move the slider from the start to the end, or halt it. */
  #play() {
    if (this.timer) return this.#pause();
    const { slider } = this, step = Math.max(1, Math.round(slider.max / 200));
    this.isAtEnd = false;
    slider.value = 1;
    this.play.replaceChildren(icon("stop"));
    this.timer = setInterval(() => {
      slider.value = Number(slider.value) + step;
      this.isAtEnd = slider.value === slider.max;
      this.draw();
      if (this.isAtEnd) this.#pause();
    }, 40);
    return null;
  }

  #pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.play.replaceChildren(icon("play"));
  }

  #save() {
    const canvas = document.createElement("canvas");
    const title = [this.title, counted(this.tokens, "token")].filter(Boolean).join(" · ");
    const layout = new MapLayout(this.trace, 1280, 800);
    paintMap(canvas, layout, this.counts, { mode: this.mode, dark: isDark(), ratio: 2, title });
    canvas.toBlob((blob) => download("experts.png", blob));
  }
}
