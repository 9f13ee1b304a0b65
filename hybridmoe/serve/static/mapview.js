// The expert map in its own view: axes, a slider over the response's tokens, keys, export as PNG.

import { $, download, iconButton } from "./dom.js";
import { colour, drawCells, isDark } from "./experts.js";

const LEFT = 44, TOP = 26, RIGHT = 8, BOTTOM = 30; // of the axes, in CSS pixels

export class MapView {
  constructor() {
    this.dialog = $("map");
    this.canvas = $("experts");
    this.slider = $("map-token");
    this.trace = null;
    this.cursor = null; // {layer, expert}
    this.isAtEnd = true;
    this.slider.addEventListener("input", () => { this.isAtEnd = this.slider.value === this.slider.max; this.draw(); });
    $("map-span").addEventListener("change", () => this.draw());
    this.canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.canvas.addEventListener("pointerleave", () => { this.cursor = null; this.draw(); });
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    $("map-tools").append(iconButton("play", "Play", () => this.#play()), iconButton("down", "Save as PNG", () => this.#save()));
    addEventListener("resize", () => this.dialog.open && this.draw());
  }

  /** Open the view of a response's experts. */
  open(trace, title) {
    this.title = title;
    this.isAtEnd = true;
    this.cursor = null;
    this.dialog.showModal();
    this.show(trace);
  }

  /** Show a trace, which may have grown. */
  show(trace) {
    this.trace = trace;
    if (!this.dialog.open || this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => { this.isDue = false; this.draw(); });
  }

  get #range() {
    const end = Number(this.slider.value), span = $("map-span").value;
    return [span === "all" ? 0 : end - Number(span), end];
  }

  draw() {
    const { trace, slider, canvas } = this;
    $("map-empty").hidden = Boolean(trace?.tokens.length);
    $("map-body").hidden = !trace?.tokens.length;
    if (!trace?.tokens.length) return;
    slider.max = trace.tokens.length;
    slider.min = 1;
    if (this.isAtEnd) slider.value = slider.max;
    $("map-at").textContent = `token ${slider.value} of ${slider.max}`;
    const width = $("map-frame").clientWidth - LEFT - RIGHT;
    const cell = Math.max(3, Math.min(28, Math.floor(width / trace.experts)));
    const counts = (this.counts = trace.counts(...this.#range));
    const high = Math.max(cell, Math.min(10, Math.floor((innerHeight - 290) / trace.layers)));
    Object.assign(this, { cell, high });
    const wide = LEFT + trace.experts * cell + RIGHT, tall = TOP + trace.layers * high + BOTTOM;
    const ratio = devicePixelRatio || 1;
    canvas.width = wide * ratio;
    canvas.height = tall * ratio;
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${tall}px`;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    this.#paint(context, counts, wide, tall);
    if (this.cursor) {
      const { layer, expert } = this.cursor;
      context.strokeStyle = isDark() ? "#fff" : "#000";
      context.lineWidth = 1.5;
      context.strokeRect(LEFT + expert * cell - 1, TOP + layer * high - 1, cell + 1, high + 1);
    }
    this.#describe();
  }

  #paint(context, counts, wide, tall) {
    const { trace, cell, high } = this, dark = isDark();
    const text = dark ? "#aab4c0" : "#565d66";
    context.fillStyle = dark ? "#11151b" : "#ffffff";
    context.fillRect(0, 0, wide, tall);
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = text;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const rows = every(trace.layers, Math.max(1, Math.ceil(14 / high)));
    for (const layer of rows) context.fillText(`${trace.first + layer}`, LEFT - 6, TOP + (layer + 0.5) * high);
    context.textAlign = "center";
    const columns = every(trace.experts, Math.max(1, Math.ceil(34 / cell)));
    for (const expert of columns) context.fillText(`${expert}`, LEFT + (expert + 0.5) * cell, TOP - 10);
    context.textAlign = "left";
    context.fillText("layer", 2, TOP - 10);
    const most = counts.reduce((a, b) => Math.max(a, b), 1), below = tall - BOTTOM / 2 + 2;
    context.fillText("never", LEFT, below);
    for (let i = 0; i < 60; i++) {
      context.fillStyle = colour((i / 59) ** 2, dark);
      context.fillRect(LEFT + 38 + 2 * i, below - 5, 2, 10);
    }
    context.fillStyle = text;
    context.fillText(`${most} ${most === 1 ? "token" : "tokens"}`, LEFT + 166, below);
    drawCells(context, counts, trace.experts, cell, high, LEFT, TOP, dark);
  }

  #point(event) {
    const box = this.canvas.getBoundingClientRect();
    const expert = Math.floor((event.clientX - box.left - LEFT) / this.cell);
    const layer = Math.floor((event.clientY - box.top - TOP) / this.high);
    const isInside = expert >= 0 && layer >= 0 && expert < this.trace.experts && layer < this.trace.layers;
    this.cursor = isInside ? { layer, expert } : null;
    this.draw();
  }

  #key(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step || !this.trace) return;
    event.preventDefault();
    const { layer, expert } = this.cursor ?? { layer: 0, expert: 0 };
    const keep = (value, end) => Math.max(0, Math.min(end - 1, value));
    this.cursor = this.cursor ? { layer: keep(layer + step[0], this.trace.layers), expert: keep(expert + step[1], this.trace.experts) } : { layer, expert };
    this.draw();
  }

  #describe() {
    const [from, to] = this.#range, tokens = to - Math.max(0, from);
    if (!this.cursor) {
      $("expert").textContent = "Point at a square, or use the arrow keys.";
      return;
    }
    const { layer, expert } = this.cursor;
    const count = this.counts[layer * this.trace.experts + expert];
    $("expert").textContent = `layer ${this.trace.first + layer}, expert ${expert}: ${count} of ${tokens} tokens (${((100 * count) / tokens).toFixed(1)} %)`;
  }

  /** Move the slider from the start to the end. */
  #play() {
    clearInterval(this.timer);
    const { slider } = this, step = Math.max(1, Math.round(slider.max / 200));
    this.isAtEnd = false;
    slider.value = 1;
    this.timer = setInterval(() => {
      slider.value = Number(slider.value) + step;
      this.draw();
      if (slider.value === slider.max || !this.dialog.open) {
        clearInterval(this.timer);
        this.isAtEnd = true;
      }
    }, 40);
  }

  #save() {
    this.cursor = null;
    this.draw();
    this.canvas.toBlob((blob) => download("experts.png", blob));
  }
}

/** Every `step`-th of n, in steps of 1, 2, 5, 10, ... */
function every(n, step) {
  const ten = 10 ** Math.floor(Math.log10(step));
  const round = [1, 2, 5, 10].map((one) => one * ten).find((one) => one >= step);
  return Array.from({ length: Math.ceil(n / round) }, (_, i) => i * round);
}
