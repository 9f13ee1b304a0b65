// The chosen experts of a response: recorded per token, and drawn as a heat map of layers and experts.

const GLOW = 12; // latest tokens, in the strip
const MAX_ROWS = 8, MAX_COLUMNS = 96; // of the strip

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

/** Draw counts as cells of `cell` x `high` pixels at (x0, y0) of a 2D context. */
export function drawCells(context, counts, experts, cell, high, x0, y0, dark) {
  const most = counts.reduce((a, b) => Math.max(a, b), 1);
  const wide = cell >= 6 ? cell - 1 : cell, tall = high >= 6 ? high - 1 : high;
  const shades = new Map();
  counts.forEach((count, at) => {
    if (!shades.has(count)) shades.set(count, colour(count / most, dark));
    context.fillStyle = shades.get(count);
    context.fillRect(x0 + (at % experts) * cell, y0 + Math.floor(at / experts) * high, wide, tall);
  });
}

/** Sum counts over blocks, so that at most MAX_ROWS x MAX_COLUMNS are left. Returns [counts, columns, rows]. */
function pooled(counts, layers, experts) {
  const tall = Math.ceil(layers / MAX_ROWS), wide = Math.ceil(experts / MAX_COLUMNS);
  const rows = Math.ceil(layers / tall), columns = Math.ceil(experts / wide);
  const sums = new Uint32Array(rows * columns);
  counts.forEach((count, at) => {
    sums[Math.floor(Math.floor(at / experts) / tall) * columns + Math.floor((at % experts) / wide)] += count;
  });
  return [sums, columns, rows];
}

/** A narrow live map beside a response, of the latest tokens; of a large model, of blocks of experts. */
export class Strip {
  constructor(canvas) {
    this.canvas = canvas;
  }

  show(trace) {
    if (this.isDue || !trace.tokens.length) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      const end = trace.tokens.length;
      const [counts, columns, rows] = pooled(trace.counts(end - GLOW, end), trace.layers, trace.experts);
      this.canvas.width = columns;
      this.canvas.height = rows;
      drawCells(this.canvas.getContext("2d"), counts, columns, 1, 1, 0, 0, isDark());
    });
  }
}
