// Highlighting of code by highlight.js; a language is loaded when a block of it is closed.

const LANGUAGES = {
  bash: ["bash", "sh", "shell", "zsh", "console"], c: ["c", "h"], cpp: ["cpp", "c++", "cc", "hpp", "cuda"], css: ["css"],
  diff: ["diff", "patch"], go: ["go", "golang"], java: ["java"], javascript: ["javascript", "js", "jsx", "mjs"],
  json: ["json", "jsonc"], python: ["python", "py"], rust: ["rust", "rs"], sql: ["sql"], typescript: ["typescript", "ts", "tsx"],
  xml: ["xml", "html", "svg"], yaml: ["yaml", "yml"],
};
const MAX_CHARS = 100_000;
const loaded = new Map();

/** Highlight a code element by its class `language-NAME`; leave others as they are. */
export async function highlight(code) {
  const given = /language-([^\s]+)/.exec(code.className)?.[1].toLowerCase();
  const name = Object.keys(LANGUAGES).find((one) => LANGUAGES[one].includes(given));
  if (!name || code.textContent.length > MAX_CHARS) return;
  const { default: hljs } = await import("./vendor/highlight.js");
  if (!loaded.has(name)) loaded.set(name, import(`./vendor/languages/${name}.js`));
  hljs.registerLanguage(name, (await loaded.get(name)).default);
  const text = code.textContent;
  const made = DOMPurify.sanitize(hljs.highlight(text, { language: name, ignoreIllegals: true }).value, {
    ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true,
  });
  if (made.textContent === text) code.replaceChildren(made);
}
