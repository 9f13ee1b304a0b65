// API reference, rendered from /openapi.json.

import { element } from "./dom.js";

const document_ = await (await fetch("/openapi.json")).json();
document.getElementById("about").textContent = `${document_.info.description} Version ${document_.info.version}.`;
const routes = Object.entries(document_.paths).flatMap(([path, verbs]) =>
  Object.entries(verbs).map(([verb, operation]) => route(path, verb, operation)),
);
document.getElementById("routes").replaceChildren(...routes);

function route(path, verb, operation) {
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  const response = operation.responses?.["200"]?.content?.["application/json"]?.schema;
  const box = element("details", { className: "route" });
  const title = element("summary", {}, element("span", { className: "verb", textContent: verb.toUpperCase() }),
    element("code", { textContent: path }));
  box.append(title, element("p", { textContent: operation.description ?? operation.summary ?? "" }));
  if (body) box.append(element("h2", { textContent: "Request" }), table(resolve(body)));
  if (response) box.append(element("h2", { textContent: "Response" }), table(resolve(response)));
  const codes = Object.entries(operation.responses ?? {}).filter(([code]) => code !== "200" && code !== "422");
  if (codes.length) {
    box.append(element("h2", { textContent: "Errors" }));
    for (const [code, error] of codes) {
      box.append(element("div", { className: "dim", textContent: `${code}: ${error.description}` }));
    }
  }
  return box;
}

function table(schema) {
  const made = element("table");
  const required = new Set(schema.required ?? []);
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    const row = element("tr", {}, element("td", {}, element("code", { textContent: name })),
      element("td", { textContent: type(field) + (required.has(name) ? ", required" : "") }),
      element("td", { textContent: field.description ?? limits(field) }));
    made.append(row);
  }
  return element("div", {}, element("p", { className: "dim", textContent: schema.description ?? "" }), made);
}

function resolve(schema) {
  if (!schema.$ref) return schema;
  return document_.components.schemas[schema.$ref.split("/").pop()];
}

function type(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map(type).filter((name) => name !== "null").join(" | ");
  if (schema.type === "array") return `${schema.items ? type(schema.items) : "any"}[]`;
  return schema.type ?? "any";
}

function limits(schema) {
  const field = (schema.anyOf ?? [schema]).find((one) => one.type !== "null") ?? {};
  const parts = [];
  if (field.minimum !== undefined) parts.push(`from ${field.minimum}`);
  if (field.maximum !== undefined) parts.push(`to ${field.maximum}`);
  return parts.join(" ");
}
