// API reference, rendered from /openapi.json, with example requests that can be sent from here.

import { $, copy, element, iconButton, textButton } from "./dom.js";

const MAX_SHOWN = 20_000; // characters of a reply
const VERBS = new Map([["get", "GET"], ["post", "POST"], ["delete", "DELETE"]]);

const api = exact(await (await fetch("/openapi.json")).text());
const model = await servedModel();
$("about").replaceChildren(...prose(`${api.info.description} Version ${api.info.version}.`));
const groups = new Map();
for (const [path, verbs] of Object.entries(api.paths)) {
  for (const [verb, operation] of Object.entries(verbs)) {
    const tag = operation.tags?.[0] ?? "Other";
    groups.set(tag, [...(groups.get(tag) ?? []), route(path, verb, operation)]);
  }
}
$("routes").replaceChildren(...[...groups].flatMap(([tag, routes]) => [element("h2", {}, tag), ...routes]));
const linked = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
if (linked) {
  linked.open = true;
  linked.scrollIntoView();
}

/** Parse a document. Limits beyond a double's precision stay texts, so that no digit changes. */
function exact(text) {
  return JSON.parse(text.replace(/("(?:exclusive)?(?:minimum|maximum)"): ?(-?\d{16,})(?![\d.e])/gi, '$1:"$2"'));
}

async function servedModel() {
  try {
    return (await (await fetch("/v1/models", { headers: headers() })).json()).data[0].id;
  } catch {
    return null; // none is loaded yet
  }
}

function headers() {
  const key = sessionStorage.getItem("hybridmoe.key");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function route(path, verb, operation) {
  const body = operation.requestBody?.content?.["application/json"];
  const response = operation.responses?.["200"]?.content?.["application/json"]?.schema;
  const words = operation.description ?? operation.summary ?? "", [first] = words.split("\n\n");
  const box = element("details", { class: "route", id: `${verb}${path}` },
    element("summary", {}, element("span", { class: "verb" }, VERBS.get(verb) ?? verb.toUpperCase()),
      element("code", {}, path), element("span", { class: "dim about" }, ...prose(first))));
  box.addEventListener("toggle", () => {
    if (box.childElementCount > 1) return;
    for (const paragraph of words.split("\n\n").slice(1)) box.append(element("p", {}, ...prose(paragraph)));
    box.append(example(path, verb, body?.example));
    const parameters = operation.parameters ?? [];
    if (parameters.length) {
      const properties = Object.fromEntries(parameters.map(({ name, schema, description }) => [name, { ...schema, description }]));
      box.append(element("h3", {}, "Parameters"), table({ properties, required: parameters.filter(({ required }) => required).map(({ name }) => name) }));
    }
    if (body?.schema) box.append(element("h3", {}, "Request"), table(resolve(body.schema)));
    if (response) box.append(element("h3", {}, "Response"), table(resolve(response)));
    box.append(...errors(operation));
  });
  return box;
}

/** The example as a command, and where it needs no id, a button that sends it. */
function example(path, verb, given) {
  const body = given && { ...given, ...(model && "model" in given ? { model } : {}) };
  const text = body ? JSON.stringify(body, null, 2) : "";
  const method = verb === "get" || body ? "" : ` -X ${verb.toUpperCase()}`;
  const data = body ? ` -H 'Content-Type: application/json' -d '${text.replaceAll("'", "'\\''")}'` : "";
  const shell = element("pre", { tabIndex: 0 }, element("code", {}, `curl${method} '${location.origin}${path}'${data}`));
  const copying = iconButton("copy", "Copy", () => copy(shell.textContent, copying));
  const head = element("div", { class: "code-head" }, "Example", copying);
  const box = element("div", { class: "code" }, head, shell);
  if (path.includes("{") || !(verb === "get" || body)) return box;
  const reply = element("pre", { tabIndex: 0, hidden: true, "aria-label": "Reply" });
  const sending = textButton("Send", async () => {
    sending.disabled = true;
    try {
      const got = await fetch(path, { method: verb.toUpperCase(), headers: headers(), body: text || undefined });
      reply.textContent = `${got.status} ${got.statusText}\n${pretty(await got.text())}`.slice(0, MAX_SHOWN);
    } catch {
      reply.textContent = "no connection to the server";
    }
    reply.hidden = sending.disabled = false;
  });
  copying.before(sending);
  box.append(reply);
  return box;
}

function errors(operation) {
  const codes = Object.entries(operation.responses ?? {}).filter(([code]) => code >= 400 && code !== "422");
  if (!codes.length) return [];
  const lines = codes.flatMap(([code, { description }]) => [element("dt", {}, code), element("dd", {}, ...prose(description))]);
  return [element("h3", {}, "Errors"), element("dl", { class: "dim" }, ...lines)];
}

function table(schema) {
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => element("tr", {},
    element("td", {}, element("code", {}, name)),
    element("td", {}, type(field) + (required.has(name) ? ", required" : "")),
    element("td", {}, ...prose([limits(field), field.description].filter(Boolean).join(". ")))));
  return element("div", {}, schema.description ? element("p", { class: "dim" }, ...prose(schema.description)) : null, element("table", {}, ...rows));
}

/** The nodes of a text whose code is in backticks. */
function prose(text) {
  return text.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part)).filter((part) => part !== "");
}

function resolve(schema) {
  return schema.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema;
}

function type(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return [...new Set(choices.map(type))].filter((name) => name !== "null").join(" | ");
  if (schema.type === "array") return `${schema.items ? type(schema.items) : "any"}[]`;
  return schema.type ?? "any";
}

function limits(schema) {
  const field = (schema.anyOf ?? [schema]).find((one) => one.type !== "null") ?? {};
  const parts = [];
  if (field.minimum !== undefined) parts.push(`from ${field.minimum}`);
  if (field.exclusiveMinimum !== undefined) parts.push(`above ${field.exclusiveMinimum}`);
  if (field.maximum !== undefined) parts.push(`to ${field.maximum}`);
  return parts.join(" ");
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
