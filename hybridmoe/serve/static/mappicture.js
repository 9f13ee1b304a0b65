// The picture of an expert map: cells, axes and a legend, on a canvas of the view or of a PNG.

import { counted } from "./dom.js";
import { TIERS } from "./experts.js";
import { colour, drawCells } from "./heat.js";

const LEFT = 44, TOP = 50, RIGHT = 8, BOTTOM = 8; // around the cells, in CSS pixels
const LEAST = 3, MOST = 28; // of a cell
const AROUND = 300; // height of the view that is not the map's
const LEGEND = 280; // least width

/** Where the cells of a trace are, in CSS pixels, for a view of `width`, and `height` of the window.
 * Upright, where the experts do not fit beside each other: they go down, and the layers across.
 */
export class MapLayout {
  constructor({ layers, experts, first }, width, height) {
    const room = width - LEFT - RIGHT;
    this.isUpright = height > width && LEAST * experts > room && layers < experts;
    Object.assign(this, { layers, experts, first });
    const [columns, rows] = this.isUpright ? [layers, experts] : [experts, layers];
    this.cell = clamp(Math.floor(room / columns), LEAST, MOST);
    const tall = clamp(Math.floor((height - AROUND) / rows), LEAST, 10);
    this.high = this.isUpright ? tall : Math.max(this.cell, tall);
    this.wide = Math.max(LEFT + columns * this.cell + RIGHT, Math.min(width, LEGEND));
    this.tall = TOP + rows * this.high + BOTTOM;
  }

  /** The top left corner of a cell. */
  place(layer, expert) {
    const [column, row] = this.isUpright ? [layer, expert] : [expert, layer];
    return [LEFT + column * this.cell, TOP + row * this.high];
  }

  /** The cell at a point; null beside all. */
  at(x, y) {
    const column = Math.floor((x - LEFT) / this.cell), row = Math.floor((y - TOP) / this.high);
    const [layer, expert] = this.isUpright ? [column, row] : [row, column];
    return layer >= 0 && expert >= 0 && layer < this.layers && expert < this.experts ? { layer, expert } : null;
  }
}

/** Draw the map of `counts`. `title`: a line above it, for a picture that stands alone. */
export function paintMap(canvas, layout, counts, { mode, dark, ratio, title = "" }) {
  const above = title ? 26 : 0, { wide, tall } = layout;
  canvas.width = wide * ratio;
  canvas.height = (tall + above) * ratio;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.fillStyle = dark ? "#14171c" : "#fdfcfa";
  context.fillRect(0, 0, wide, tall + above);
  context.fillStyle = dark ? "#e6e8eb" : "#1f2328";
  context.textBaseline = "middle";
  context.font = "600 13px system-ui, sans-serif";
  if (title) context.fillText(title, LEFT, 20, wide - LEFT - RIGHT);
  context.translate(0, above);
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = dark ? "#aab4c0" : "#565d66";
  paintAxes(context, layout);
  if (mode === "tier") paintTiers(context, counts, dark);
  else paintScale(context, counts.most, dark);
  drawCells(context, counts, mode, dark, [layout.cell, layout.high], (layer, expert) => layout.place(layer, expert));
}

function paintAxes(context, layout) {
  const { cell, high, layers, experts, first, isUpright } = layout;
  const across = isUpright ? [layers, first] : [experts, 0], down = isUpright ? [experts, 0] : [layers, first];
  context.textAlign = "center";
  for (const one of every(across[0], Math.ceil(34 / cell))) context.fillText(one + across[1], LEFT + (one + 0.5) * cell, TOP - 10);
  context.textAlign = "right";
  for (const one of every(down[0], Math.ceil(14 / high))) context.fillText(one + down[1], LEFT - 6, TOP + (one + 0.5) * high);
  context.fillText(isUpright ? "expert" : "layer", LEFT - 6, TOP - 10);
  context.textAlign = "left";
}

const LEGEND_Y = 16;

/** Legend: shares by tier. */
function paintTiers(context, counts, dark) {
  const text = context.fillStyle, sums = counts.sums, all = sums.reduce((a, b) => a + b, 0) || 1;
  let x = LEFT;
  TIERS.forEach((name, tier) => {
    for (let i = 0; i < 4; i++) {
      context.fillStyle = colour(((i + 1) / 4) ** 2, tier, dark);
      context.fillRect(x + 5 * i, LEGEND_Y - 5, 5, 10);
    }
    context.fillStyle = text;
    const label = `${name} ${percent(sums[tier] / all)}`;
    context.fillText(label, x + 25, LEGEND_Y);
    x += 25 + context.measureText(label).width + 14;
  });
}

/** Legend: from never chosen to most often. */
function paintScale(context, most, dark) {
  const text = context.fillStyle;
  context.fillText("never", LEFT, LEGEND_Y);
  for (let i = 0; i < 60; i++) {
    context.fillStyle = colour((i / 59) ** 2, null, dark);
    context.fillRect(LEFT + 36 + 2 * i, LEGEND_Y - 5, 2, 10);
  }
  context.fillStyle = text;
  context.fillText(counted(most, "token"), LEFT + 164, LEGEND_Y);
}

export function percent(share) {
  return `${share > 0 && share < 0.0995 ? (100 * share).toFixed(1) : Math.round(100 * share)} %`;
}

function clamp(value, least, most) {
  return Math.max(least, Math.min(most, value));
}

/** Every `step`-th of n, rounded up to a step of 1, 2, 5, 10, ... */
function every(n, step) {
  const ten = 10 ** Math.floor(Math.log10(Math.max(1, step)));
  const round = [1, 2, 5, 10].map((one) => one * ten).find((one) => one >= step);
  return Array.from({ length: Math.ceil(n / round) }, (_, i) => i * round);
}
