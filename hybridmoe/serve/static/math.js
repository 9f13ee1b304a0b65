// Formulas: \( \), \[ \], $ $ and $$ $$, typeset by KaTeX as MathML (no fonts, no styles).

const INLINE = /^(?:\\\(([\s\S]+?)\\\)|\\\[([\s\S]+?)\\\]|\$\$([\s\S]+?)\$\$|\$(?!\s)((?:\\.|[^\\$\n])+?)(?<!\s)\$(?!\d))/;
const BLOCK = [["$$", "$$"], ["\\[", "\\]"]];

/** Add formulas to a MarkdownIt. */
export function addMath(md) {
  md.inline.ruler.before("escape", "math", (state, silent) => {
    const first = state.src[state.pos];
    if (first !== "\\" && first !== "$") return false;
    const found = INLINE.exec(state.src.slice(state.pos, state.posMax));
    if (!found) return false;
    if (!silent) push(state, found[2] ?? found[3] ? "math-display" : "math-inline", found.slice(1).find(Boolean));
    state.pos += found[0].length;
    return true;
  });
  md.block.ruler.before("fence", "math", (state, line, end, silent) => {
    const text = (at) => state.src.slice(state.bMarks[at] + state.tShift[at], state.eMarks[at]);
    const marks = BLOCK.find(([open]) => text(line).startsWith(open));
    if (!marks) return false;
    const lines = [text(line).slice(2)];
    let at = line;
    while (!lines.at(-1).includes(marks[1])) {
      if (++at >= end) return false;
      lines.push(text(at));
    }
    const whole = lines.join("\n"), close = whole.indexOf(marks[1]);
    if (whole.slice(close + 2).trim()) return false;
    if (silent) return true;
    push(state, "math-display", whole.slice(0, close)).map = [line, at + 1];
    state.line = at + 1;
    return true;
  }, { alt: ["paragraph", "blockquote", "list"] });
  for (const kind of ["math-inline", "math-display"]) {
    md.renderer.rules[kind] = (tokens, i) => `<span class="${kind}">${md.utils.escapeHtml(tokens[i].content)}</span>`;
  }
}

function push(state, kind, content) {
  const token = state.push(kind, "span", 0);
  token.content = content.trim();
  token.block = kind === "math-display";
  return token;
}

export function isMath(node) {
  return node.classList.contains("math-inline") || node.classList.contains("math-display");
}

/** Typeset an element's text; it stays as it is if it is no formula. */
export async function renderMath(node) {
  const source = node.textContent;
  try {
    await import("./vendor/katex.js");
    const options = { displayMode: node.classList.contains("math-display"), output: "mathml", trust: false, throwOnError: true, maxExpand: 200, maxSize: 20, strict: "ignore" };
    const place = document.createElement("span");
    katex.render(source, place, options);
    if (place.querySelector("[style]")) throw new Error("styled"); // the policy allows no style
    node.replaceChildren(...place.childNodes);
  } catch {
    node.classList.add("math-source");
  }
}
