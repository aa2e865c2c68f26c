// Reads /openapi.json and shows it; every word of it becomes a text node, never markup.
"use strict";

const MAX_SHOWN = 200_000;

/** Make an element; strings among `inside` become text. */
function el(tag, attributes, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...inside.flat(Infinity).filter((part) => part !== undefined && part !== null));
  return made;
}

/** Text with `code` spans. */
function words(text) {
  return (text ?? "").split(/`([^`]*)`/).map((part, i) => (i % 2 ? el("code", {}, part) : part));
}

/** Follow a local reference. */
function resolved(doc, value) {
  let found = value;
  for (let hops = 0; found && found.$ref && hops < 8; hops++) {
    found = found.$ref.slice(2).split("/").reduce((at, key) => at?.[key.replaceAll("~1", "/")], doc);
  }
  return found ?? {};
}

// -- shapes -----------------------------------------------------------------------------------

/** The type of a schema in a few words. */
function kind(doc, schema) {
  const named = schema.$ref?.split("/").pop();
  if (named) return named;
  const parts = schema.anyOf ?? schema.oneOf;
  if (parts) return parts.map((part) => kind(doc, part)).join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${kind(doc, schema.items ?? {})}`;
  return (schema.type ?? "anything") + bounds(schema);
}

function bounds(schema) {
  const said = [];
  const low = schema.minimum ?? schema.minLength ?? schema.minItems;
  const high = schema.maximum ?? schema.maxLength ?? schema.maxItems;
  const unit = schema.minLength !== undefined || schema.maxLength !== undefined ? " characters" : "";
  if (low !== undefined) said.push(`≥ ${low}`);
  if (high !== undefined) said.push(`≤ ${high}`);
  if (schema.pattern) said.push(schema.pattern);
  return said.length ? ` ${said.join(", ")}${unit}` : "";
}

/** The objects a schema may be, however deep in its alternatives and lists. */
function objects(doc, schema, depth = 0) {
  const found = resolved(doc, schema);
  if (depth > 3) return [];
  if (found.properties) return [found];
  const inner = [...(found.anyOf ?? found.oneOf ?? []), ...(found.items ? [found.items] : [])];
  return inner.flatMap((part) => objects(doc, part, depth + 1));
}

/** Fields of an object as a table; nested objects open on demand. */
function fields(doc, schema, depth = 0) {
  return objects(doc, schema).map((shape) => {
    const needed = new Set(shape.required ?? []);
    const rows = Object.entries(shape.properties).map(([name, inner]) => el("tr", {},
      el("td", {}, el("code", {}, name), needed.has(name) ? el("b", { title: "required" }, " *") : ""),
      el("td", {}, el("span", { class: "type" }, kind(doc, inner)), " ", words(inner.description),
        depth < 4 && objects(doc, inner).length ? lazily(doc, inner, depth + 1) : null)));
    return el("div", {}, el("p", { class: "dim" }, words(shape.description)), el("table", {}, rows));
  });
}

function lazily(doc, schema, depth) {
  const box = el("details", {}, el("summary", { class: "dim" }, "fields"));
  box.addEventListener("toggle", () => {
    if (box.childElementCount === 1) {
      box.append(el("div", { class: "fields" }, fields(doc, schema, depth)));
    }
  });
  return box;
}

// -- routes -----------------------------------------------------------------------------------

function route(doc, path, method, operation) {
  const box = el("details", { class: "route", id: operation.operationId },
    el("summary", {},
      el("span", { class: `method ${method}` }, method),
      el("span", { class: "path" }, path),
      el("span", { class: alias(operation) ? "dim" : "" },
        alias(operation) ? `same as ${alias(operation)}` : words(operation.summary))));
  box.dataset.words = `${method} ${path} ${operation.summary}`.toLowerCase();
  box.addEventListener("toggle", () => {
    if (box.open && box.childElementCount === 1) box.append(details(doc, path, method, operation));
  });
  return box;
}

function alias(operation) {
  return operation["x-alias-of"];
}

function details(doc, path, method, operation) {
  const parameters = (operation.parameters ?? []).map((one) => resolved(doc, one));
  const media = operation.requestBody?.content?.["application/json"];
  const sample = operation["x-codeSamples"]?.[0]?.source;
  return el("div", {},
    alias(operation) ? el("p", {}, words(operation.summary)) : null,
    operation.description ? el("p", { class: "dim" }, words(operation.description)) : null,
    sample ? el("pre", { class: "curl" }, sample.replaceAll("http://127.0.0.1:8080", location.origin)) : null,
    parameters.length ? [el("h3", {}, "Parameters"), parameterTable(doc, parameters)] : null,
    media ? [el("h3", {}, "Body: ", kind(doc, media.schema)), fields(doc, media.schema)] : null,
    el("h3", {}, "Answers"), answers(doc, operation.responses),
    el("h3", {}, "Try it"), trial(path, method, parameters, media));
}

function parameterTable(doc, parameters) {
  return el("table", {}, parameters.map((one) => el("tr", {},
    el("td", {}, el("code", {}, one.name), one.required ? el("b", { title: "required" }, " *") : ""),
    el("td", { class: "dim" }, one.in),
    el("td", {}, el("span", { class: "type" }, kind(doc, one.schema ?? {})), " ", words(one.description)))));
}

function answers(doc, responses) {
  return el("table", {}, Object.entries(responses).map(([status, given]) => {
    const answer = resolved(doc, given);
    const shapes = Object.entries(answer.content ?? {}).map(([type, media]) => el("div", {},
      el("span", { class: "type" }, `${type} ${media.schema ? kind(doc, media.schema) : ""}`),
      objects(doc, media.schema ?? {}).length ? lazily(doc, media.schema, 1) : null));
    return el("tr", {}, el("td", {}, status), el("td", {}, words(answer.description), shapes));
  }));
}

// -- try it -----------------------------------------------------------------------------------

function trial(path, method, parameters, media) {
  const inputs = parameters.map((one) => [one, el("input", {
    name: one.name, required: one.required === true, autocomplete: "off",
    placeholder: one.required ? "required" : "not sent",
  })]);
  const body = media ? el("textarea", { rows: 6, spellcheck: "false", "aria-label": "body" }) : null;
  if (body) body.value = JSON.stringify(media.example ?? {}, null, 2);
  const status = el("span", { class: "status", role: "status" });
  const head = el("pre", { class: "head", hidden: true });
  const answer = el("pre", { class: "answer", hidden: true });
  const stop = el("button", { type: "button", hidden: true }, "Stop");
  return el("form", { onsubmit: (event) => {
    event.preventDefault();
    send(request(path, method, inputs, body), { status, head, answer, stop });
  } },
  inputs.map(([one, input]) => el("label", {}, el("code", {}, one.name), input)),
  body, el("p", {}, el("button", { type: "submit" }, "Send"), " ", stop, " ", status), head, answer);
}

/** What `fetch` needs, from what was filled in. */
function request(path, method, inputs, body) {
  const headers = new Headers();
  const query = new URLSearchParams();
  let target = path;
  for (const [one, input] of inputs) {
    if (!input.value) continue;
    if (one.in === "path") target = target.replace(`{${one.name}}`, encodeURIComponent(input.value));
    else if (one.in === "query") query.set(one.name, input.value);
    else headers.set(one.name, input.value);
  }
  const key = document.getElementById("key").value;
  if (key) headers.set("authorization", `Bearer ${key}`);
  if (body) headers.set("content-type", "application/json");
  const search = query.size ? `?${query}` : "";
  return [target + search, { method: method.toUpperCase(), headers, body: body?.value, cache: "no-store" }];
}

/** Send, and show the answer as it comes. */
async function send([target, options], { status, head, answer, stop }) {
  const leaving = new AbortController();
  stop.onclick = () => leaving.abort();
  stop.hidden = answer.hidden = head.hidden = false;
  head.textContent = answer.textContent = "";
  status.className = "status";
  status.textContent = "sent …";
  const started = performance.now();
  try {
    const got = await fetch(target, { ...options, signal: leaving.signal });
    status.className = `status ${got.ok ? "good" : "bad"}`;
    status.textContent = `${got.status} ${got.statusText}`;
    head.textContent = [...got.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
    await show(got, answer);
    status.textContent += `, ${Math.round(performance.now() - started)} ms`;
  } catch (error) {
    status.className = "status bad";
    status.textContent = error.name === "AbortError" ? "stopped" : String(error);
  } finally {
    stop.hidden = true;
  }
}

async function show(got, answer) {
  const type = got.headers.get("content-type") ?? "";
  const reader = got.body?.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (reader) {
    const { done, value } = await reader.read();
    if (done) break;
    text = (text + value).slice(0, MAX_SHOWN);
    answer.textContent = text;
  }
  if (type.startsWith("application/json") && text.length < MAX_SHOWN) {
    answer.textContent = JSON.stringify(JSON.parse(text), null, 2);
  }
}

// -- the page ---------------------------------------------------------------------------------

function find(wanted) {
  for (const box of document.querySelectorAll(".route")) {
    box.hidden = !wanted.every((word) => box.dataset.words.includes(word));
  }
  for (const group of document.querySelectorAll("section")) {
    group.hidden = !group.querySelector(".route:not([hidden])");
  }
}

function group(doc, tag) {
  const routes = Object.entries(doc.paths).flatMap(([path, methods]) =>
    Object.entries(methods)
      .filter(([, operation]) => operation.tags.includes(tag.name))
      .map(([method, operation]) => route(doc, path, method, operation)));
  return el("section", { id: `tag-${tag.name}` },
    el("h2", {}, tag["x-displayName"] ?? tag.name), el("p", { class: "dim" }, words(tag.description)), routes);
}

async function start() {
  const main = document.getElementById("routes");
  try {
    const got = await fetch("/openapi.json");
    if (!got.ok) throw new Error(`${got.status} ${got.statusText}`);
    const doc = await got.json();
    document.getElementById("version").textContent = doc.info.version;
    document.getElementById("intro").replaceChildren(...words(doc.info.description));
    main.replaceChildren(...doc.tags.map((tag) => group(doc, tag)));
    document.getElementById("find").addEventListener("input", (event) =>
      find(event.target.value.toLowerCase().split(/\s+/).filter(Boolean)));
    const asked = document.getElementById(location.hash.slice(1));
    if (asked) { asked.open = true; asked.scrollIntoView(); }
  } catch (error) {
    main.textContent = `The description could not be read: ${error.message}`;
  }
  main.removeAttribute("aria-busy");
}

start();
