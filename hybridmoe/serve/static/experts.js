// Heat map of chosen experts: a grid of layers and experts in which the latest tokens glow.

const FADE = 0.8; // factor per token

export class ExpertMap {
  constructor(canvas, caption) {
    this.canvas = canvas;
    this.caption = caption;
    this.shape(0, 0, 0);
    canvas.addEventListener("mousemove", (event) => this.describe(event));
    canvas.addEventListener("mouseleave", () => { caption.textContent = "\u00a0"; });
  }

  /** Set the number of MoE layers and of experts per layer; `first`: the first layer's number. */
  shape(layers, experts, first) {
    Object.assign(this, { layers, experts, first });
    this.cell = experts ? Math.max(2, Math.min(16, Math.floor(704 / experts))) : 1;
    this.canvas.width = Math.max(1, experts * this.cell);
    this.canvas.height = Math.max(1, layers * this.cell);
    this.reset();
  }

  reset() {
    this.glow = new Float32Array(this.layers * this.experts);
    this.counts = new Uint32Array(this.layers * this.experts);
    this.tokens = 0;
    this.draw();
  }

  /** Add a token: its chosen experts, per layer. */
  add(token) {
    this.tokens += 1;
    for (let i = 0; i < this.glow.length; i++) this.glow[i] *= FADE;
    token.slice(0, this.layers).forEach((ids, layer) => {
      for (const id of ids) {
        if (id < 0 || id >= this.experts) continue;
        const at = layer * this.experts + id;
        this.glow[at] = 1;
        this.counts[at] += 1;
      }
    });
    if (!this.isDue) {
      this.isDue = true;
      requestAnimationFrame(() => { this.isDue = false; this.draw(); });
    }
  }

  /** Number of experts chosen at least once, in all layers. */
  get used() {
    return this.counts.reduce((sum, count) => sum + (count > 0), 0);
  }

  draw() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const most = this.counts.reduce((a, b) => Math.max(a, b), 1);
    const gap = this.cell > 3 ? 1 : 0;
    for (let at = 0; at < this.glow.length; at++) {
      if (!this.counts[at]) continue;
      const heat = this.counts[at] / most, glow = this.glow[at];
      // Slate by frequency, amber by recency.
      const red = 60 + 60 * heat + (255 - 120) * glow;
      const green = 85 + 60 * heat + (180 - 145) * glow;
      const blue = 115 + 60 * heat + (84 - 175) * glow;
      const alpha = 0.25 + 0.75 * Math.max(heat, glow);
      context.fillStyle = `rgb(${red} ${green} ${blue} / ${alpha})`;
      const x = (at % this.experts) * this.cell, y = Math.floor(at / this.experts) * this.cell;
      context.fillRect(x, y, this.cell - gap, this.cell - gap);
    }
  }

  describe(event) {
    const box = this.canvas.getBoundingClientRect();
    const expert = Math.floor(((event.clientX - box.left) / box.width) * this.experts);
    const layer = Math.floor(((event.clientY - box.top) / box.height) * this.layers);
    const count = this.counts[layer * this.experts + expert];
    if (count === undefined) return;
    this.caption.textContent =
      `layer ${this.first + layer}, expert ${expert}: ${count} of ${this.tokens} tokens`;
  }
}
