// Heat maps of experts: colours by frequency and by tier, and the strip beside a response.

import { TIERS } from "./experts.js";

const GLOW = 12; // latest tokens, in the strip
const MAX_ROWS = 8, MAX_COLUMNS = 96; // of the strip
const KEY = "hybridmoe.map";

/** Colours from rarely to most often chosen, behind that of never; dark and light. */
const SCALES = {
  light: {
    never: [236, 232, 224],
    frequency: [[246, 214, 165], [236, 160, 70], [196, 98, 16], [98, 40, 4]],
    tiers: [[[246, 214, 165], [214, 112, 10]], [[178, 208, 236], [24, 98, 172]], [[228, 186, 220], [150, 40, 128]]],
  },
  dark: {
    never: [30, 36, 44],
    frequency: [[86, 58, 22], [158, 98, 24], [255, 180, 84], [255, 240, 206]],
    tiers: [[[104, 70, 24], [255, 180, 84]], [[28, 66, 104], [104, 182, 250]], [[92, 44, 88], [240, 142, 222]]],
  },
};

export function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** What colours say: "tier" or "frequency". Until one is chosen, tiers if a trace has several. */
export function modeOf(trace) {
  const chosen = localStorage.getItem(KEY);
  if (chosen === "tier" || chosen === "frequency") return chosen;
  return trace.sums.filter(Boolean).length > 1 ? "tier" : "frequency";
}

export function chooseMode(mode) {
  localStorage.setItem(KEY, mode);
}

/** The colour of a cell whose share of the most frequent is in [0, 1]. `tier`: null = by frequency. */
export function colour(share, tier, dark) {
  const scales = SCALES[dark ? "dark" : "light"];
  if (share <= 0) return rgb(scales.never);
  const scale = tier === null ? scales.frequency : scales.tiers[tier];
  const at = Math.sqrt(Math.min(1, share)) * (scale.length - 1), low = Math.min(scale.length - 2, Math.floor(at));
  return rgb(scale[low].map((value, i) => Math.round(value + (at - low) * (scale[low + 1][i] - value))));
}

function rgb(parts) {
  return `rgb(${parts.join(" ")})`;
}

/** Draw counts: `place(row, column)` gives [x, y], `size` [width, height] of a cell. */
export function drawCells(context, counts, mode, dark, size, place) {
  const most = counts.most, shades = new Map();
  const [wide, tall] = size.map((one) => (one >= 6 ? one - 1 : one));
  for (let at = 0; at < counts.rows * counts.columns; at++) {
    const total = counts.total(at), tier = mode === "tier" && total ? counts.tier(at) : null;
    const key = total * 4 + (tier ?? TIERS.length);
    if (!shades.has(key)) shades.set(key, colour(total / most, tier, dark));
    context.fillStyle = shades.get(key);
    context.fillRect(...place(Math.floor(at / counts.columns), at % counts.columns), wide, tall);
  }
}

/** A narrow live map beside a response, of the latest tokens; of a large model, of blocks of experts. */
export class Strip {
  constructor(canvas) {
    this.canvas = canvas;
  }

  show(trace) {
    this.trace = trace;
    if (this.isDue || !trace.length) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      const { trace, canvas } = this, counts = trace.counts(trace.length - GLOW).pooled(MAX_ROWS, MAX_COLUMNS);
      canvas.width = counts.columns;
      canvas.height = counts.rows;
      drawCells(canvas.getContext("2d"), counts, modeOf(trace), isDark(), [1, 1], (row, column) => [column, row]);
    });
  }
}
