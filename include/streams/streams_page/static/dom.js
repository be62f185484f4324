// Elements, numbers and times. All text of messages becomes text nodes, never markup.

export const byId = (id) => document.getElementById(id);

// An element with attributes and children; strings become text nodes, null and "" are left out.
export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value != null && value !== false) node.setAttribute(key, value === true ? "" : value);
  node.append(...children.flat().filter((child) => child != null && child !== "").map((child) => (typeof child === "number" ? String(child) : child)));
  return node;
}

export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export const sign = (state) => svg("svg", { class: "sign", "aria-hidden": "true" }, svg("use", { href: `#sign-${state}` }));

export const STATES = { broken: "Needs repair", late: "Late", unknown: "Not known", busy: "Working", well: "Well" };

export const asWords = (name) => {
  const text = String(name).replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
};

export const number = (value) => (value == null ? "–" : Math.round(value).toLocaleString("en"));

export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

export function short(value) {
  if (value == null) return "–";
  if (value < 10000) return number(value);
  if (value < 1e6) return `${(value / 1e3).toFixed(value < 1e5 ? 1 : 0)} k`;
  return `${(value / 1e6).toFixed(1)} M`;
}

export function duration(seconds) {
  if (seconds == null) return "–";
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export function bytes(value) {
  if (value == null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let n = 0;
  for (; value >= 1000 && n < units.length - 1; n += 1) value /= 1000;
  return `${value < 10 && n ? value.toFixed(1) : Math.round(value)} ${units[n]}`;
}

// "3 min ago", kept up to date by `tick`.
let skewMs = 0;
export const setSkew = (ms) => (skewMs = ms);
export const now = () => Date.now() + skewMs;

export function ago(iso) {
  const time = element("time", { datetime: iso, class: "age", title: new Date(iso).toLocaleString() });
  updateTime(time);
  return time;
}

function updateTime(time) {
  const seconds = (now() - Date.parse(time.dateTime)) / 1000;
  const text = seconds < -1 ? `in ${duration(-seconds)}` : `${duration(seconds)} ago`;
  if (time.textContent !== text) time.textContent = text;
}

export const tick = () => document.querySelectorAll("time.age").forEach(updateTime);

// Draws items in order. An unchanged item keeps its element, and with it the focus.
export function drawList(container, items, key, draw) {
  const drawn = (container.drawn ??= new Map());
  const wanted = items.map((item) => {
    const id = key(item);
    const text = JSON.stringify(item);
    const known = drawn.get(id);
    if (known?.text === text) return known.node;
    const node = draw(item);
    if (known?.node.contains(document.activeElement)) queueMicrotask(() => node.querySelector("a, button, input")?.focus({ preventScroll: true }));
    drawn.set(id, { text, node });
    return node;
  });
  const nodes = new Set(wanted);
  for (const [id, { node }] of drawn) if (!nodes.has(node)) drawn.delete(id);
  const same = wanted.length === container.childNodes.length && wanted.every((node, n) => container.childNodes[n] === node);
  if (!same) container.replaceChildren(...wanted);
}

// A link of Airflow's own pages. Airflow shows this page in a frame that may neither open windows nor load another page.
// So the page around the frame follows the link.
export function airflowLink(path, ...children) {
  const link = element("a", { href: `../../${path}` }, ...children);
  link.addEventListener("click", (event) => {
    if (window.top === window || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const outer = window.top.document;
    const other = outer.createElement("a");
    other.href = link.href;
    outer.body.append(other);
    other.click();
    other.remove();
    event.preventDefault();
  });
  return link;
}

export const runLink = (dagId, runId) => airflowLink(`dags/${encodeURIComponent(dagId)}/runs/${encodeURIComponent(runId)}`, dagId);

export const viewLink = (view, name, ...children) => element("a", { href: `#/${view}/${encodeURIComponent(name)}` }, ...(children.length ? children : [name]));

export function runbookLink(page) {
  const [file, section] = page.replace(/^docs\/runbooks\//, "").split("#");
  const name = (section ?? file.replace(/\.md$/, "")).replaceAll("-", " ");
  return element("a", { href: `#/runbooks/${encodeURIComponent(file)}${section ? `/${encodeURIComponent(section)}` : ""}` }, `Runbook: ${name}`);
}

// A small curve; null is a moment without a sample.
export function curve(points, label, { width = 120, height = 28 } = {}) {
  const known = points.filter((point) => point != null);
  const top = Math.max(1, ...known);
  const picture = svg("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": known.length ? `${label}: at most ${short(Math.max(...known))}, last ${short(known[known.length - 1])}` : `${label}: no samples yet`, preserveAspectRatio: "none" });
  const x = (n) => (points.length < 2 ? 0 : (n / (points.length - 1)) * (width - 2) + 1);
  const y = (value) => height - 2 - (value / top) * (height - 4);
  picture.append(svg("line", { class: "base", x1: 0, x2: width, y1: height - 1.5, y2: height - 1.5 }));
  let part = [];
  const flush = () => {
    if (part.length > 1) {
      const line = part.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join(" ");
      picture.append(svg("polygon", { class: "area", points: `${part[0][0].toFixed(1)},${height - 1} ${line} ${part[part.length - 1][0].toFixed(1)},${height - 1}` }), svg("polyline", { class: "line", points: line }));
    } else if (part.length === 1) picture.append(svg("circle", { class: "point", cx: part[0][0].toFixed(1), cy: part[0][1].toFixed(1), r: 1.8 }));
    part = [];
  };
  points.forEach((point, n) => (point == null ? flush() : part.push([x(n), y(point)])));
  flush();
  return picture;
}

// A table that becomes a list of cards on a phone: each cell knows the name of its column.
export function table(caption, columns, rows, { empty = "None" } = {}) {
  if (!rows.length) return element("p", { class: "empty" }, empty);
  const head = element("tr", {}, ...columns.map((column) => element("th", { scope: "col", class: column.class }, column.name)));
  const body = rows.map((row) => element("tr", {}, ...row.map((cell, n) => element("td", { "data-label": columns[n].name, class: columns[n].class }, cell ?? "–"))));
  return element("div", { class: "scroll" }, element("table", { class: "plain" }, element("caption", { class: "hidden-text" }, caption), element("thead", {}, head), element("tbody", {}, ...body)));
}

export function panel(title, ...children) {
  const id = `panel-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  return element("section", { class: "panel", "aria-labelledby": id }, element("h2", { id }, title), ...children);
}

export const facts = (...pairs) => element("dl", { class: "facts" }, ...pairs.filter(Boolean).map(([name, ...value]) => element("div", {}, element("dt", {}, name), element("dd", {}, ...value.map((part) => part ?? "–")))));
