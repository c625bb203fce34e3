// Elements, made and kept up to date without ever reading a text as HTML: names, errors and details come from others.

const SVG = "http://www.w3.org/2000/svg";

// An element with attributes, listeners (`onclick: f`) and children; a child that is a text becomes a text node. An attribute that
// is null or false is left out.
export function el(name, attributes, ...children) {
  return filled(document.createElement(name), attributes, children);
}

// The same of SVG.
export function svg(name, attributes, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else set(element, name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Sets or removes an attribute. What is unchanged is not touched: a screen reader would say it again.
export function set(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value === true ? "" : value)) {
    element.setAttribute(name, value === true ? "" : value);
  }
}

export function text(element, value) {
  const written = String(value ?? "");
  if (element.textContent !== written) element.textContent = written;
}

export function show(element, shown) {
  if (element.hidden === Boolean(shown)) element.hidden = !shown;
}

// Replaces children only where they differ in kind, by a key that says what they show. The focus stays at that place.
export function once(element, key, make) {
  if (element.dataset.shows === key) return;
  element.dataset.shows = key;
  const focused = element.contains(document.activeElement);
  element.replaceChildren(...[make()].flat());
  if (focused) element.querySelector("a, button")?.focus();
}

const kept = new WeakMap();

// Keeps a parent's children the rows of `items`, each made once for its key and then updated: what has the focus keeps it.
export function keyed(parent, items, keyOf, make) {
  if (!kept.has(parent)) {
    kept.set(parent, new Map());
    parent.replaceChildren();
  }
  const rows = kept.get(parent);
  const wanted = new Set(items.map(keyOf));
  for (const [key, row] of rows) {
    if (wanted.has(key)) continue;
    row.gone?.();
    row.node.remove();
    rows.delete(key);
  }
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    if (!rows.has(key)) rows.set(key, make(item));
    const row = rows.get(key);
    row.update(item);
    if (row.node === place) place = place.nextElementSibling;
    else parent.insertBefore(row.node, place);
  }
  // A row that moves loses it.
  if (focused?.isConnected && document.activeElement !== focused) focused.focus({ preventScroll: true });
}

// A table of which a narrow screen makes cards. The roles are said, because a table that isn't laid out as one loses them.
export function table(caption, columns) {
  const head = columns.map(([name, kind]) => el("th", { scope: "col", role: "columnheader", class: kind }, name));
  // Until something is known, rows without words keep its place.
  const waits = Array.from({ length: 3 }, () => el("tr", { class: "skeleton", "aria-hidden": "true" }, columns.map(() => el("td", {}, el("span", {})))));
  const body = el("tbody", { role: "rowgroup" }, waits);
  const whole = el(
    "table",
    { role: "table" },
    el("caption", { class: "unseen" }, caption),
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, head)),
    body,
  );
  return { node: whole, body };
}

export function row(columns, cells, attributes) {
  const made = cells.map((cell, i) => el("td", { role: "cell", "data-label": columns[i][0], class: columns[i][1] }, cell));
  return el("tr", { role: "row", ...attributes }, made);
}

// A field that looks through what a list has, hidden until there is something to look through.
export function searching(of, placeholder, changed) {
  const field = el("input", { id: `search-${of}`, type: "search", placeholder, spellcheck: "false", autocapitalize: "none", oninput: changed });
  const label = el("label", { for: field.id }, "Search", field);
  const node = el("form", { class: "filters", role: "search", "aria-label": `Search the ${of}`, onsubmit: (event) => event.preventDefault(), hidden: true }, label);
  const words = () => field.value.trim();
  const found = (items, textsOf) => items.filter((of) => textsOf(of).some((text) => text.toLowerCase().includes(words().toLowerCase())));
  return { node, words, found };
}

// Said by a screen reader once it is done with what it says now.
export function say(words) {
  const said = document.getElementById("said");
  // The same words again are news only where they differ.
  said.textContent = said.textContent === words ? `${words}\u00a0` : words;
}

// A dialog that goes away when it is closed, and gives the focus back to what opened it.
export function dialog(title, ...children) {
  const heading = el("h2", { id: `dialog-${crypto.getRandomValues(new Uint32Array(1))[0]}` }, title);
  const opened = el("dialog", { "aria-labelledby": heading.id }, heading, ...children);
  opened.addEventListener("close", () => opened.remove());
  document.body.append(opened);
  opened.showModal();
  return opened;
}
