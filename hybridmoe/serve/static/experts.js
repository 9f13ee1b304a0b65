// The chosen experts of a response: recorded per token, and drawn as a heat map of layers and experts.

const GLOW = 12; // latest tokens that glow

/** Colours from never chosen to chosen most often, dark and light. */
const SCALES = {
  dark: [[28, 35, 48], [46, 66, 110], [98, 84, 160], [196, 92, 130], [246, 158, 84], [255, 236, 170]],
  light: [[232, 230, 226], [190, 205, 226], [140, 150, 205], [150, 90, 165], [165, 45, 95], [90, 10, 40]],
};

/** The experts of each token of a response: (token, layer) -> ids. */
export class ExpertTrace {
  constructor(shape) {
    Object.assign(this, shape); // layers, experts, first (number of the first MoE layer)
    this.tokens = [];
  }

  add(tokens) {
    for (const token of tokens) this.tokens.push(token.slice(0, this.layers).map((ids) => Int16Array.from(ids)));
  }

  /** Count choices of each (layer, expert) in tokens [from, to). */
  counts(from, to) {
    const counts = new Uint32Array(this.layers * this.experts);
    for (let i = Math.max(0, from); i < Math.min(to, this.tokens.length); i++) {
      this.tokens[i].forEach((ids, layer) => {
        for (const id of ids) if (id >= 0 && id < this.experts) counts[layer * this.experts + id] += 1;
      });
    }
    return counts;
  }

  /** Describe how many experts were chosen. */
  get summary() {
    if (!this.tokens.length) return "";
    const counts = this.counts(0, this.tokens.length);
    return `${counts.reduce((sum, count) => sum + (count > 0), 0)} of ${counts.length} chosen`;
  }
}

export function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Colour of a share in [0, 1] of the most frequent. */
export function colour(share, dark = isDark()) {
  const scale = SCALES[dark ? "dark" : "light"];
  const at = Math.sqrt(Math.max(0, Math.min(1, share))) * (scale.length - 1);
  const low = Math.min(scale.length - 2, Math.floor(at)), part = at - low;
  const [r, g, b] = scale[low].map((value, i) => Math.round(value + part * (scale[low + 1][i] - value)));
  return `rgb(${r} ${g} ${b})`;
}

/** Draw counts as cells of `cell` pixels at (x0, y0) of a 2D context. */
export function drawCells(context, counts, experts, cell, x0, y0, dark) {
  const most = counts.reduce((a, b) => Math.max(a, b), 1);
  const gap = cell >= 6 ? 1 : 0;
  const size = Math.max(1, cell - gap);
  const shades = new Map();
  counts.forEach((count, at) => {
    if (!shades.has(count)) shades.set(count, colour(count / most, dark));
    context.fillStyle = shades.get(count);
    context.fillRect(x0 + (at % experts) * cell, y0 + Math.floor(at / experts) * cell, size, size);
  });
}

/** A narrow live map beside a response: a row for each layer, the latest tokens. */
export class Strip {
  constructor(canvas) {
    this.canvas = canvas;
  }

  show(trace) {
    if (this.isDue || !trace.tokens.length) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      const cell = Math.max(1, Math.min(5, Math.floor(768 / trace.experts)));
      this.canvas.width = trace.experts * cell;
      const high = trace.layers > 16 ? 1 : 8;
      this.canvas.height = trace.layers * high;
      this.canvas.style.imageRendering = high > 1 ? "pixelated" : "auto";
      const context = this.canvas.getContext("2d");
      const end = trace.tokens.length;
      context.scale(1, high / cell);
      drawCells(context, trace.counts(end - GLOW, end), trace.experts, cell, 0, 0, isDark());
    });
  }
}
