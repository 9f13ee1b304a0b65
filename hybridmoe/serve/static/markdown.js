// Markdown as it streams: closed blocks are rendered once, and only the last one changes, in place,
// so that a selection stays. Raw HTML is text, images are links, and what is rendered is sanitized.

import MarkdownIt from "./vendor/markdown-it.js";
import "./vendor/purify.js";
import { copy, element, iconButton } from "./dom.js";
import { addMath, isMath, renderMath } from "./math.js";
import { highlight } from "./highlighting.js";

const md = new MarkdownIt({ html: false, linkify: true, breaks: false });
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
md.validateLink = (url) => /^(https?:|mailto:)/i.test(url.trim()) || /^#/.test(url);
md.use(addMath);
const SAFE = {
  ALLOWED_TAGS: [..."p br hr h1 h2 h3 h4 h5 h6 strong em s code pre blockquote ul ol li a table thead tbody tr th td span div".split(" ")],
  ALLOWED_ATTR: ["href", "class", "start", "title"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

md.renderer.rules.image = (tokens, i) => {
  const escape = md.utils.escapeHtml, source = tokens[i].attrGet("src") ?? "";
  return `<a href="${escape(source)}">[image: ${escape(tokens[i].content || source)}]</a>`;
};
for (const cell of ["th_open", "td_open"]) {
  md.renderer.rules[cell] = (tokens, i, options, env, self) => {
    const style = tokens[i].attrGet("style");
    if (style) tokens[i].attrs = [["class", `align-${style.split(":")[1]}`]]; // the policy allows no style
    return self.renderToken(tokens, i, options);
  };
}

/** Render Markdown as safe elements. */
function rendered(tokens, env) {
  const made = DOMPurify.sanitize(md.renderer.render(tokens, md.options, env), SAFE);
  for (const link of made.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const table of made.querySelectorAll("table")) {
    const frame = element("div", { class: "table", tabIndex: 0, role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const code of made.querySelectorAll("pre > code")) frameCode(code);
  return made;
}

function frameCode(code) {
  const language = /^language-([\w+#.-]{1,30})/.exec(code.className)?.[1] ?? "";
  const pre = code.parentElement;
  const button = iconButton("copy", "Copy code", () => copy(button.closest(".code").querySelector("code").textContent, button));
  const head = element("div", { class: "code-head" }, element("span", {}, language), button);
  const frame = element("div", { class: "code" }, head);
  pre.replaceWith(frame);
  pre.tabIndex = 0;
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
  frame.append(pre);
}

/** An element that shows a growing Markdown text. */
export class MarkdownView {
  constructor(root) {
    this.root = root;
    this.#clear();
  }

  #clear() {
    this.root.replaceChildren();
    this.text = "";
    this.start = 0; // of the last block in the text
    this.last = []; // the last block's nodes
    this.env = {};
  }

  /** Show `text`; `isDone`: it is complete. */
  update(text, isDone = false) {
    if (!text.startsWith(this.text)) this.#clear();
    if (isDone && this.start && /^ {0,3}\[[^\]\n]+\]:/m.test(text)) this.#clear(); // links defined below their use
    this.text = text;
    const tail = text.slice(this.start);
    const blocks = split(md.parse(tail, this.env));
    const closed = isDone ? blocks.length : blocks.length - 1;
    blocks.forEach((block, i) => {
      const made = [...rendered(block, this.env).childNodes];
      if (i === 0) this.#replaceLast(made);
      else this.#append(made);
      if (i < closed) for (const node of this.last) finish(node);
    });
    if (!blocks.length) this.#replaceLast([]);
    if (blocks.length > 1) this.start += lineStart(tail, blocks.at(-1)[0].map[0]);
  }

  #append(nodes) {
    this.root.append(...nodes);
    this.last = nodes;
  }

  #replaceLast(nodes) {
    if (this.last.length === nodes.length && nodes.every((node, i) => morph(this.last[i], node))) return;
    for (const node of this.last) node.remove();
    this.#append(nodes);
  }
}

/** Split tokens into their blocks of the top level. */
function split(tokens) {
  const blocks = [];
  let depth = 0;
  for (const token of tokens) {
    if (depth === 0) blocks.push([]);
    blocks.at(-1).push(token);
    depth += token.nesting;
  }
  return blocks;
}

function lineStart(text, line) {
  let at = 0;
  for (; line > 0; line--) at = text.indexOf("\n", at) + 1;
  return at;
}

/** Change `old` into `made`, keeping nodes and selections. Returns false if they differ in kind. */
function morph(old, made) {
  if (old.nodeType !== made.nodeType || old.nodeName !== made.nodeName) return false;
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data === made.data) return true;
    if (made.data.startsWith(old.data)) old.appendData(made.data.slice(old.data.length));
    else old.data = made.data;
    return true;
  }
  if (old.className !== made.className || old.getAttribute("href") !== made.getAttribute("href")) return false;
  const before = [...old.childNodes], after = [...made.childNodes];
  after.forEach((node, i) => {
    if (i >= before.length) old.append(node);
    else if (!morph(before[i], node)) before[i].replaceWith(node);
  });
  for (const node of before.slice(after.length)) node.remove();
  return true;
}

/** Highlight code and typeset formulas of a block that does not change any more. */
function finish(node) {
  if (node.nodeType !== Node.ELEMENT_NODE) return;
  const all = (what) => [...(node.matches(what) ? [node] : []), ...node.querySelectorAll(what)];
  for (const code of all("pre > code[class]")) highlight(code);
  for (const formula of all("span, div")) if (isMath(formula)) renderMath(formula);
}
