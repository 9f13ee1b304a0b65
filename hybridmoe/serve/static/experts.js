// The chosen experts of a response: recorded token by token, with the tier that served each.

export const TIERS = ["VRAM", "RAM", "disk"];
const LETTERS = "VRD"; // of the server's `expert_tiers`

/** How often each cell of a grid was chosen, by tier. */
export class Counts {
  constructor(rows, columns) {
    Object.assign(this, { rows, columns });
    this.byTier = TIERS.map(() => new Uint32Array(rows * columns));
  }

  total(at) {
    return this.byTier.reduce((sum, counts) => sum + counts[at], 0);
  }

  /** The tier that served most of a cell's choices. */
  tier(at) {
    return this.byTier.reduce((best, counts, tier) => (counts[at] > this.byTier[best][at] ? tier : best), 0);
  }

  /** The largest total of a cell, 1 at least. */
  get most() {
    return this.byTier[0].reduce((most, _, at) => Math.max(most, this.total(at)), 1);
  }

  /** All choices by tier. */
  get sums() {
    return this.byTier.map((counts) => counts.reduce((a, b) => a + b, 0));
  }

  /** Sum up blocks of cells, so that at most `rows` x `columns` are left. */
  pooled(rows, columns) {
    const tall = Math.ceil(this.rows / rows), wide = Math.ceil(this.columns / columns);
    const pooled = new Counts(Math.ceil(this.rows / tall), Math.ceil(this.columns / wide));
    this.byTier.forEach((counts, tier) => counts.forEach((count, at) => {
      const row = Math.floor(Math.floor(at / this.columns) / tall), column = Math.floor((at % this.columns) / wide);
      pooled.byTier[tier][row * pooled.columns + column] += count;
    }));
    return pooled;
  }
}

/** The experts of each token of a response, in flat arrays: (token, layer, rank) -> id, tier. */
export class ExpertTrace {
  /** A new trace of a model's `shape`, or one that was `packed`. `first`: number of the first MoE layer. */
  constructor({ layers, experts, first, width = 0, length = 0, ids = new Int16Array(), tiers = new Uint8Array() }) {
    Object.assign(this, { layers, experts, first, width, length, ids, tiers });
    this.sums = TIERS.map((_, tier) => tiers.reduce((sum, one, at) => sum + (one === tier && ids[at] >= 0), 0)); // choices by tier
  }

  /** Add tokens: ids by layer, and a text of letters for each layer. */
  add(tokens, tiers) {
    this.width ||= tokens[0]?.[0]?.length ?? 0;
    const row = this.layers * this.width, end = (this.length + tokens.length) * row;
    if (end > this.ids.length) {
      this.ids = grown(this.ids, Math.max(end, 2 * this.ids.length));
      this.tiers = grown(this.tiers, this.ids.length);
    }
    tokens.forEach((token, i) => {
      for (let layer = 0; layer < this.layers; layer++) {
        for (let rank = 0; rank < this.width; rank++) {
          const at = (this.length + i) * row + layer * this.width + rank;
          this.ids[at] = token[layer]?.[rank] ?? -1;
          if (this.ids[at] < 0) continue;
          this.tiers[at] = LETTERS.indexOf(tiers[i][layer][rank]);
          this.sums[this.tiers[at]] += 1;
        }
      }
    });
    this.length += tokens.length;
  }

  /** Count the choices of each (layer, expert) in tokens [from, to). */
  counts(from = 0, to = this.length) {
    const counts = new Counts(this.layers, this.experts), row = this.layers * this.width;
    const end = Math.min(to, this.length) * row;
    for (let at = Math.max(0, from) * row; at < end; at++) {
      const id = this.ids[at], layer = Math.floor((at % row) / this.width);
      if (id >= 0 && id < this.experts) counts.byTier[this.tiers[at]][layer * this.experts + id] += 1;
    }
    return counts;
  }

  /** Describe how many experts were chosen. */
  get summary() {
    const counts = this.counts(), all = this.layers * this.experts;
    let chosen = 0;
    for (let at = 0; at < all; at++) chosen += counts.total(at) > 0;
    return this.length ? `${chosen} of ${all} chosen` : "";
  }

  /** The trace as plain data, without room to grow. */
  packed() {
    const { layers, experts, first, width, length } = this, end = length * layers * width;
    return { layers, experts, first, width, length, ids: this.ids.slice(0, end), tiers: this.tiers.slice(0, end) };
  }
}

function grown(array, length) {
  const made = new array.constructor(length);
  made.set(array);
  return made;
}
