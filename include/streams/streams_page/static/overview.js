// All consumers, landed topics and alarms, worst first.

import { STATES, ago, asWords, byId, curve, drawList, duration, element, number, plural, runbookLink, short, sign, viewLink } from "./dom.js";

const BAD = ["broken", "late"];

export function makeOverview(container) {
  const filter = element("input", { type: "search", id: "filter", placeholder: "Filter by name", "aria-label": "Filter consumers and topics by name", autocomplete: "off" });
  let data = null;
  container.replaceChildren(
    element("div", { id: "verdict", class: "verdict" }),
    element("section", { class: "panel urgent", id: "alarms-panel", "aria-labelledby": "alarms-title", hidden: true }, element("h2", { id: "alarms-title" }, "Alarms"), element("ol", { id: "alarms" })),
    element("div", { class: "tools" }, filter),
    element("section", { class: "panel", "aria-labelledby": "consumers-title" }, element("h2", { id: "consumers-title" }, "Consumers"), headOf(["Consumer", "Lag", "6 hours", "Per minute", "Handled", "Duplicates", "Conflicts", "Dead letters", "Open claims"], "consumer"), element("ol", { id: "consumers", class: "rows" })),
    element("section", { class: "panel", "aria-labelledby": "landed-title", id: "landed-panel" }, element("h2", { id: "landed-title" }, "Landed topics"), headOf(["Topic", "Not landed", "6 hours", "Connector", "Rows", "Missing", "Lost", "Last commit"], "landed"), element("ol", { id: "landed", class: "rows" })),
  );
  filter.addEventListener("input", () => data && draw(data));

  function draw(document_) {
    data = document_;
    const wanted = filter.value.trim().toLowerCase();
    const has = (row) => !wanted || row.name.toLowerCase().includes(wanted) || (row.topics ?? []).some((topic) => topic.topic.toLowerCase().includes(wanted));
    drawVerdict(data);
    byId("alarms-panel").hidden = !data.alarms.length;
    byId("alarms-title").textContent = plural(data.alarms.length, "open alarm");
    drawList(byId("alarms"), data.alarms, (alarm) => alarm.id, alarmItem);
    drawRows("consumers", data.consumers.filter(has), consumerRow, wanted ? "No consumer has this name" : "The project declares no consumer");
    byId("landed-panel").hidden = !data.landed.length;
    drawRows("landed", data.landed.filter(has), landedRow, "No landed topic has this name");
  }
  return draw;
}

const headOf = (names, kind) => element("div", { class: `head ${kind}`, "aria-hidden": "true" }, ...names.map((name) => element("span", {}, name)));

function drawRows(id, rows, draw, empty) {
  drawList(byId(id), rows.length ? rows : [{ name: "", empty }], (row) => row.name, (row) => (row.empty ? element("li", { class: "empty" }, row.empty) : draw(row)));
}

function drawVerdict({ consumers, landed, problems, alarms }) {
  const bad = (rows, state) => rows.filter((row) => row.state === state).length;
  const broken = bad(consumers, "broken") + bad(landed, "broken");
  const late = bad(consumers, "late") + bad(landed, "late");
  const state = broken ? "broken" : late || alarms.length ? "late" : problems.length ? "unknown" : "well";
  const total = consumers.length + landed.length;
  const title = {
    broken: `${broken} of ${total} ${broken === 1 ? "needs" : "need"} repair`,
    late: late ? `${late} of ${total} ${late === 1 ? "is" : "are"} late` : plural(alarms.length, "open alarm"),
    unknown: "Not everything is known",
    well: "All is well",
  }[state];
  const sum = (key) => consumers.reduce((total_, row) => total_ + (row[key] ?? 0), 0);
  const parts = [plural(consumers.length, "consumer"), plural(landed.length, "landed topic"), consumers.every((row) => row.lag == null) ? "lag not known" : `${plural(sum("lag"), "message")} waiting`, `${number(sum("handled"))} handled in 24 h`];
  if (sum("dead_letters")) parts.push(`${plural(sum("dead_letters"), "dead letter")} in 24 h`);
  const item = { state, title, text: parts.join(" · "), late: broken && late ? `${late} more ${late === 1 ? "is" : "are"} late` : "" };
  drawList(byId("verdict"), [item], () => "verdict", () => {
    const node = element("div", { class: "verdict-inner", "data-state": state }, sign(state), element("div", {}, element("p", { class: "verdict-title" }, title, item.late ? element("small", {}, ` ${item.late}`) : null), element("p", { class: "verdict-text" }, item.text)));
    return node;
  });
  document.title = BAD.includes(state) ? `(${broken + late || alarms.length}) Streams` : "Streams";
}

export function alarmItem(alarm) {
  const subject = alarm.consumer ? viewLink("consumers", alarm.consumer, alarm.source) : alarm.landed ? viewLink("topics", alarm.landed, alarm.source) : alarm.source;
  return element(
    "li",
    { class: "alarm", "data-alarm": alarm.id },
    element("p", { class: "action" }, element("b", {}, asWords(alarm.kind)), ": ", subject, alarm.key ? ` (${alarm.key})` : ""),
    element("p", { class: "message" }, alarm.message),
    element("p", { class: "meta" }, element("span", {}, "opened ", ago(alarm.opened_at)), runbookLink(alarm.runbook)),
  );
}

function nameCell(row, view, sub) {
  return element(
    "div",
    { class: "cell name" },
    sign(row.state),
    element(
      "div",
      {},
      element("p", {}, element("b", {}, viewLink(view, row.name)), " ", element("span", { class: "state" }, STATES[row.state])),
      sub ? element("p", { class: "sub" }, sub) : null,
      row.waits_for ? element("p", { class: "waits" }, `Waits for ${row.waits_for}`) : null,
      row.alarms ? element("p", { class: "waits" }, plural(row.alarms, "open alarm")) : null,
    ),
  );
}

function cell(label, value, { note = null, strong = false, zero = false } = {}) {
  return element("div", { class: `cell number${strong ? " strong" : ""}${zero ? " zero" : ""}`, "data-label": label }, element("span", {}, value), note ? element("small", {}, note) : null);
}

const count = (label, value, bad = false) => cell(label, short(value), { strong: bad && value > 0, zero: !value });

function consumerRow(row) {
  const topics = row.topics.map((topic) => topic.topic).join(", ");
  return element(
    "li",
    { class: "row consumer", "data-state": row.state, "data-name": row.name },
    nameCell(row, "consumers", topics === row.name ? "" : topics),
    cell("Lag", short(row.lag), { note: row.age_seconds ? duration(row.age_seconds) : null, strong: row.state === "late" && row.lag > 0, zero: !row.lag }),
    element("div", { class: "cell", "data-label": "6 hours" }, curve(row.curve, `Lag of ${row.name} in the last hours`)),
    cell("Per minute", row.per_minute == null ? "–" : short(row.per_minute), { zero: !row.per_minute }),
    count("Handled", row.handled),
    count("Duplicates", row.duplicates),
    count("Conflicts", row.conflicts, true),
    count("Dead letters", row.dead_letters, true),
    cell("Open claims", number(row.open_claims), { note: row.oldest_claim_seconds ? duration(row.oldest_claim_seconds) : null, zero: !row.open_claims }),
  );
}

function landedRow(row) {
  const tasks = row.connector?.tasks ?? [];
  const running = tasks.filter((task) => task.state === "RUNNING").length;
  const state = row.connector ? asWords(row.connector.state.toLowerCase()) : "–";
  return element(
    "li",
    { class: "row landed", "data-state": row.state, "data-name": row.name },
    nameCell(row, "topics", ""),
    cell("Not landed", short(row.not_landed), { zero: !row.not_landed }),
    element("div", { class: "cell", "data-label": "6 hours" }, curve(row.curve, `Records of ${row.name} that had not landed, in the last hours`)),
    cell("Connector", state, { note: row.connector ? `${running} of ${tasks.length} tasks run` : null, strong: row.connector && !row.connector.running }),
    count("Rows", row.rows),
    count("Missing", row.missing, true),
    count("Lost", row.lost, true),
    element("div", { class: "cell number", "data-label": "Last commit" }, row.committed_at ? ago(row.committed_at) : "–"),
  );
}
