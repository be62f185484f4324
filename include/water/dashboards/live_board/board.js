// The live board. Every text comes from messages that somebody else wrote. It enters the page as text nodes, never as
// markup; the browser enforces this (trusted types, see include/streams/pages/app.py).

import { poll } from "./poll.js";
import { drawMap } from "./map.js";

const SEVERITIES = ["critical", "major", "minor"];
// A tile shows this many alerts; the others unfold.
const ALERTS_SHOWN = 3;
const FRESH_SECONDS = 60;
// The Dag that refreshes tiles takes a few seconds. A tile that is behind for longer is named in the notice.
const BEHIND_SECONDS = 60;
// The Dag also runs every ten minutes. A tile that was refreshed longer ago is named in the notice.
const REFRESHED_SECONDS = 20 * 60;

const KINDS = { leak: "Leak", seismic: "Earthquake" };
const STATES = { executed: "Done", rejected: "Rejected", expired: "Expired", refused: "Refused" };
const FAILURES = {
  unreachable: "Connection lost",
  unavailable: "Not readable",
};

const board = {
  data: null,
  // The time when the server last confirmed the data (ms), and how far its clock is ahead of the browser's (ms).
  confirmedAt: 0,
  skewMs: 0,
  failure: null,
  // For each tile that is behind: the time when the board first saw it (ms).
  behindSince: new Map(),
  unfolded: new Set(),
  drawn: new Map(),
};

const byId = (id) => document.getElementById(id);
const now = () => Date.now() + board.skewMs;

// An element with attributes and children; strings become text nodes.
function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value != null) node.setAttribute(key, value);
  node.append(...children.filter((child) => child != null && child !== ""));
  return node;
}

function sign(severity) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#sign-${severity}`);
  svg.setAttribute("class", "sign");
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

const capitalised = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const asWords = (name) => capitalised(String(name).replaceAll("_", " "));
const worst = (counts) => SEVERITIES.find((severity) => counts[severity]) ?? "none";
const total = (counts) => SEVERITIES.reduce((sum, severity) => sum + (counts[severity] ?? 0), 0);

function countsInWords(counts) {
  const parts = SEVERITIES.filter((severity) => counts[severity]).map((severity) => `${counts[severity]} ${severity}`);
  return parts.join(", ") || "no open alerts";
}

// Time elements say how long ago something happened (class "age"), or how long remains until it does (class "until").
// `tick` updates them every second.

function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

function clock(ms) {
  return new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}

function timeElement(iso, kind) {
  const time = element("time", { datetime: iso, class: kind, title: new Date(iso).toLocaleString() });
  updateTime(time);
  return time;
}

function updateTime(time) {
  const seconds = (now() - Date.parse(time.dateTime)) / 1000;
  const text = duration(time.className === "until" ? -seconds : seconds);
  if (time.textContent !== text) time.textContent = text;
}

const age = (iso) => timeElement(iso, "age");
const until = (iso) => timeElement(iso, "until");

// A line of facts, separated by dots. A part is a node, a text or a list of both; empty parts are left out.
function factLine(...parts) {
  const line = element("p", { class: "meta" });
  for (const part of parts.filter(Boolean)) {
    if (line.childNodes.length) line.append(element("span", { class: "separator", "aria-hidden": "true" }, "·"));
    line.append(element("span", {}, ...[part].flat()));
  }
  return line;
}

// Tiles

function alertItem(alert) {
  const raisedAgain = alert.revision > 1;
  const facts = factLine(
    element("b", {}, capitalised(alert.severity)),
    raisedAgain ? ["raised again ", age(alert.updated_at), " ago"] : null,
    [raisedAgain ? "first " : "", age(alert.raised_at), " ago"],
    KINDS[alert.kind] ?? asWords(alert.kind),
    // Most titles name the site themselves.
    alert.site && !alert.title.includes(alert.site) ? alert.site : null,
  );
  facts.append(element("span", { class: "new" }, "New"));
  return element(
    "li",
    { "data-severity": alert.severity, "data-changed": alert.updated_at, "data-alert": alert.id },
    sign(alert.severity),
    element(
      "div",
      { class: "alert" },
      element("p", { class: "title", title: alert.title }, alert.title),
      facts,
    ),
  );
}

function alertList(tile) {
  if (!tile.alerts.length) return [element("p", { class: "empty" }, "No open alerts")];
  const items = tile.alerts.map(alertItem);
  const parts = [element("ol", { class: "alerts" }, ...items.slice(0, ALERTS_SHOWN))];
  const more = total(tile.counts) - Math.min(items.length, ALERTS_SHOWN);
  if (more > 0) {
    const unlisted = total(tile.counts) - items.length;
    const details = element(
      "details",
      { class: "more" },
      element("summary", {}, `${more} more`),
      element("ol", { class: "alerts" }, ...items.slice(ALERTS_SHOWN)),
      unlisted > 0 ? element("p", { class: "empty" }, `and ${unlisted} that are not listed`) : null,
    );
    details.open = board.unfolded.has(tile.id);
    details.addEventListener("toggle", () => board.unfolded[details.open ? "add" : "delete"](tile.id));
    parts.push(details);
  }
  return parts;
}

function drawTile(tile) {
  const severity = worst(tile.counts);
  return element(
    "article",
    { class: "tile", id: `tile-${tile.id}`, "data-severity": severity, tabindex: "-1", "aria-labelledby": `name-${tile.id}` },
    element(
      "header",
      {},
      sign(severity),
      element("h2", { id: `name-${tile.id}` }, tile.name),
      element("p", { class: "counts" }, severity === "none" ? "" : countsInWords(tile.counts)),
    ),
    ...alertList(tile),
    tile.behind ? element("p", { class: "behind" }, "Newer alerts are on their way") : null,
  );
}

// Draws the items in the given order. An unchanged item keeps its element, and with it the focus and the scroll.
function drawList(container, items, key, draw) {
  const wanted = items.map((item) => {
    const id = `${container.id}/${key(item)}`;
    const text = JSON.stringify(item);
    const drawn = board.drawn.get(id);
    if (drawn?.text === text) return drawn.node;
    const node = draw(item);
    board.drawn.set(id, { text, node });
    return node;
  });
  for (const [id, { node }] of board.drawn) {
    if (id.startsWith(`${container.id}/`) && !wanted.includes(node)) board.drawn.delete(id);
  }
  const focused = container.contains(document.activeElement) ? document.activeElement.closest("[id]")?.id : null;
  const same = wanted.length === container.childNodes.length && wanted.every((node, n) => container.childNodes[n] === node);
  if (!same) container.replaceChildren(...wanted);
  if (focused && !container.contains(document.activeElement)) byId(focused)?.focus({ preventScroll: true });
}

// Decisions and alarms

function engine(decision) {
  return decision.engine === "llm" ? `Model ${decision.model ?? ""}`.trim() : "Offline engine";
}

function decisionItem(decision) {
  const awaiting = decision.state === "awaiting_approval";
  return element(
    "li",
    { class: awaiting ? "decision awaiting" : "decision", "data-severity": decision.severity, "data-state": decision.state },
    sign(decision.severity),
    element(
      "div",
      {},
      element("p", { class: "action" }, element("b", {}, asWords(decision.action)), `: ${decision.target}`),
      element("p", { class: "title", title: decision.summary }, decision.summary),
      factLine(
        awaiting ? null : element("b", { class: "state" }, STATES[decision.state] ?? asWords(decision.state)),
        [age(decision.decided_at), " ago"],
        asWords(decision.category),
        decision.district,
        engine(decision),
      ),
    ),
    awaiting
      ? element("p", { class: "ask" }, approveLink(decision), element("span", {}, "rejected in ", until(decision.deadline_at)))
      : null,
  );
}

function approveLink(decision) {
  const run = decision.approval_run_id ? `/runs/${encodeURIComponent(decision.approval_run_id)}` : "";
  const link = element("a", { class: "approve", href: `../../dags/execute_decisions${run}/required_actions` }, "Review");
  link.append(element("span", { class: "hidden-text" }, `: ${asWords(decision.action)}, ${decision.target}`));
  link.addEventListener("click", leaveFrame);
  return link;
}

// Airflow shows this page in a frame that may neither open windows nor load another page. So the page around the frame
// follows the link. Without a frame, and with Ctrl, Cmd or Shift, the browser follows the link as usual.
function leaveFrame(event) {
  if (window.top === window || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const outer = window.top.document;
  const link = outer.createElement("a");
  link.href = event.currentTarget.href;
  outer.body.append(link);
  link.click();
  link.remove();
  event.preventDefault();
}

function alarmItem(alarm) {
  const about = [alarm.source, alarm.key].filter(Boolean).join(" ");
  return element(
    "li",
    { class: "alarm" },
    element(
      "div",
      {},
      element("p", { class: "action" }, element("b", {}, asWords(alarm.kind)), `: ${about}`),
      element("p", { class: "title", title: alarm.message }, alarm.message),
      factLine(["open for ", age(alarm.opened_at)]),
    ),
  );
}

function drawPanel(name, items, draw, empty, notShown = 0) {
  const rows = items.map((item) => ({ ...item, row: item.id }));
  if (!items.length) rows.push({ row: "empty", text: empty });
  if (notShown > 0) rows.push({ row: "rest", text: `and ${notShown} more` });
  const plain = (row) => element("li", { class: "empty" }, row.text);
  drawList(byId(name), rows, (row) => row.row, (row) => (row.text === undefined ? draw(row) : plain(row)));
}

// The whole board

function draw(data) {
  const previous = board.data;
  board.data = data;
  const sums = Object.fromEntries(
    SEVERITIES.map((severity) => [severity, data.tiles.reduce((sum, tile) => sum + (tile.counts[severity] ?? 0), 0)]),
  );
  const numbers = { ...sums, awaiting: data.awaiting.total, alarms: data.alarms.total };
  for (const [name, number] of Object.entries(numbers)) {
    const cell = byId(`total-${name}`);
    cell.textContent = number;
    cell.parentElement.classList.toggle("zero", number === 0);
  }
  document.title = sums.critical ? `(${sums.critical}) Live board` : "Live board";

  drawList(byId("tiles"), data.tiles, (tile) => tile.id, drawTile);
  drawMap(byId("map"), data.tiles, (tile) => ({
    severity: worst(tile.counts),
    number: total(tile.counts),
    label: `${tile.name}: ${countsInWords(tile.counts)}`,
  }));
  const { awaiting, alarms } = data;
  drawPanel("awaiting", awaiting.decisions, decisionItem, "Nothing to approve", awaiting.total - awaiting.decisions.length);
  drawPanel("alarms", alarms.alarms, alarmItem, "", alarms.total - alarms.alarms.length);
  drawPanel("decisions", data.decisions, decisionItem, "No decisions yet");
  byId("awaiting-panel").classList.toggle("urgent", awaiting.total > 0);
  byId("alarms-panel").hidden = alarms.total === 0;

  for (const tile of data.tiles) {
    if (!tile.behind) board.behindSince.delete(tile.id);
    else if (!board.behindSince.has(tile.id)) board.behindSince.set(tile.id, Date.now());
  }
  if (previous) announce(previous, data);
  tick();
}

function announce(previous, data) {
  const key = (alert) => `${alert.id}#${alert.revision}`;
  const known = new Set(previous.tiles.flatMap((tile) => tile.alerts.map(key)));
  const lines = data.tiles.flatMap((tile) =>
    tile.alerts.filter((alert) => !known.has(key(alert))).map((alert) => `${capitalised(alert.severity)} in ${tile.name}: ${alert.title}`),
  );
  if (lines.length) byId("announcement").textContent = lines.slice(0, 3).join(". ");
}

function notice() {
  if (board.failure) {
    const shown = board.confirmedAt ? `The board shows what was known at ${clock(board.confirmedAt)}.` : "";
    return {
      unreachable: `No connection to Airflow. ${shown} Trying again.`,
      unavailable: `Airflow answers, but cannot read what the board shows. ${shown} Trying again.`,
    }[board.failure];
  }
  const late = (board.data?.tiles ?? []).filter(
    (tile) =>
      Date.now() - (board.behindSince.get(tile.id) ?? Infinity) > BEHIND_SECONDS * 1000 ||
      now() - Date.parse(tile.refreshed_at ?? 0) > REFRESHED_SECONDS * 1000,
  );
  if (!late.length) return "";
  const names = late.length > 3 ? `${late.length} districts` : late.map((tile) => tile.name).join(", ");
  return `Not up to date: ${names}. Does the Dag refresh_live_board run?`;
}

function drawNotice() {
  const text = notice();
  const container = byId("notice");
  // Set only when it changes: a screen reader reads the text each time it is set.
  if (container.textContent !== text) container.textContent = text;
  container.hidden = !text;
}

function tick() {
  byId("clock").textContent = clock(now());
  document.querySelectorAll("time").forEach(updateTime);
  for (const item of document.querySelectorAll("li[data-changed]")) {
    item.classList.toggle("fresh", now() - Date.parse(item.dataset.changed) < FRESH_SECONDS * 1000);
  }
  drawNotice();
}

// On a wide screen the latest decisions follow the last tile.
const wide = matchMedia("(min-width: 100rem)");
const placeDecisions = () => (wide.matches ? byId("grid") : document.querySelector(".overview")).append(byId("decisions-panel"));
wide.addEventListener("change", placeDecisions);
placeDecisions();

poll("state", {
  onData: draw,
  onAnswer({ at, skewMs }) {
    Object.assign(board, { confirmedAt: at, skewMs, failure: null });
    document.body.dataset.connection = "live";
    byId("connection").textContent = "Live";
    drawNotice();
  },
  onFailure({ kind }) {
    // Reloading shows the login page.
    if (kind === "logged_out") return location.reload();
    board.failure = kind;
    document.body.dataset.connection = "lost";
    byId("connection").textContent = FAILURES[kind];
    drawNotice();
  },
});
setInterval(tick, 1000);
