// Small helpers for building elements; text always becomes text nodes.

export const $ = (id) => document.getElementById(id);

/** Make an element with properties (`class`, `on` and `data` too) and children. */
export function element(kind, fields = {}, ...children) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(fields)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") Object.entries(value).forEach(([event, run]) => made.addEventListener(event, run));
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const PATHS = {
  menu: "M4 7h16M4 12h16M4 17h16",
  plus: "M12 5v14M5 12h14",
  gear: "M4 8h10m4 0h2M4 16h2m4 0h10M14 8a2 2 0 1 0 4 0 2 2 0 1 0-4 0M6 16a2 2 0 1 0 4 0 2 2 0 1 0-4 0",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  map: "M5 5h3v3H5zM10.500 5h3v3h-3zM16 5h3v3h-3zM5 10.500h3v3H5zM10.500 10.500h3v3h-3zM16 10.500h3v3h-3zM5 16h3v3H5zM10.500 16h3v3h-3zM16 16h3v3h-3z",
  send: "M12 19V6M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  check: "M5 12l5 5 9-10",
  edit: "M5 19l1-4L16 5l3 3L9 18zM13 8l3 3",
  again: "M19 8a8 8 0 1 0 1 6M20 4v5h-5",
  clip: "M8 12.500l6-6a3 3 0 0 1 4.500 4.500l-8 8a5 5 0 0 1-7-7l7.500-7.500",
  close: "M6 6l12 12M18 6L6 18",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  down: "M12 5v13M6 13l6 6 6-6",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  play: "M8 5l11 7-11 7z",
};

/** Draw an icon of `PATHS`; hidden from screen readers. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const path = document.createElementNS(space, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** Make a button that shows an icon and is called `label`. */
export function iconButton(name, label, click, fields = {}) {
  return element("button", { type: "button", class: "icon-button", title: label, "aria-label": label, on: { click }, ...fields }, icon(name));
}

/** Make a button with a text. */
export function textButton(text, click, fields = {}) {
  return element("button", { type: "button", on: { click }, ...fields }, text);
}

/** A count and its unit: "1 token", "2 tokens". */
export function counted(count, unit) {
  return `${count} ${unit}${Number(count) === 1 ? "" : "s"}`;
}

/** Copy a text; the button shows a check mark for a moment. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no permission, or a page without https
    const box = element("textarea", { value: text, class: "off-screen" });
    (button.closest("dialog") ?? document.body).append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
  const before = [...button.childNodes];
  button.replaceChildren(icon("check"));
  setTimeout(() => button.replaceChildren(...before), 1200);
}

/** Offer a file for download. */
export function download(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

let fading = 0;
/** Show a line at the bottom of the window for `seconds`, with an action. */
export function toast(text, action = null, seconds = 10) {
  clearTimeout(fading);
  const hide = () => $("toast").replaceChildren();
  const act = action && textButton(action.name, () => { hide(); action.run(); });
  $("toast").replaceChildren(element("div", { class: "toast" }, element("span", {}, text), act));
  fading = setTimeout(hide, 1000 * seconds);
}
