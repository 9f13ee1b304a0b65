// What stands around a conversation: the header's buttons, the side list on and off, the theme, dialogs.

import { $, iconButton } from "./dom.js";
import { isDark } from "./heat.js";

/** `actions`: startNew(), openMap(), openSettings(), themed(). */
export function buildFrame({ startNew, openMap, openSettings, themed }) {
  $("head-left").append(
    iconButton("menu", "Conversations", toggleSide),
    iconButton("plus", "New chat", () => startNew(), { id: "new-small" }));
  $("head-right").append(
    iconButton("map", "Expert map", openMap, { id: "open-map" }),
    iconButton("gear", "Settings", openSettings, { id: "open-settings" }),
    iconButton("theme", "Dark or light", () => { toggleTheme(); themed(); }, { id: "toggle-theme" }));
  $("shade").addEventListener("click", closeSide);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themed);
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.querySelector(".dialog-head").append(iconButton("close", "Close", () => dialog.close()));
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }
}

/** Show the list of conversations, and search in it. */
export function openSearch() {
  if (getComputedStyle($("sidebar")).display === "none" || getComputedStyle($("sidebar")).visibility === "hidden") toggleSide();
  $("search").focus();
}

/** Close the list where it covers the conversation. */
export function closeSide() {
  document.body.classList.remove("side-open");
  $("shade").hidden = true;
}

function toggleSide() {
  const isWide = matchMedia("(min-width: 56.01rem)").matches;
  document.body.classList.toggle(isWide ? "side-closed" : "side-open");
  $("shade").hidden = !document.body.classList.contains("side-open");
}

function toggleTheme() {
  const next = isDark() ? "light" : "dark", root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  if (next === system) {
    delete root.dataset.theme;
    localStorage.removeItem("hybridmoe.theme");
  } else {
    root.dataset.theme = next;
    localStorage.setItem("hybridmoe.theme", next);
  }
}
