// One consumer, and one landed topic.

import { STATES, ago, asWords, bytes, curve, drawList, duration, element, facts, number, panel, plural, runLink, sign, table, viewLink } from "./dom.js";
import { alarmItem } from "./overview.js";

const right = "right";
const column = (name, cls) => ({ name, class: cls });

function drawParts(container, parts) {
  drawList(container, parts.filter(Boolean), (part) => part.id, (part) => part.draw());
}

function title(row, kind) {
  return {
    id: "title",
    state: [row.state, row.waits_for, row.name],
    draw: () =>
      element(
        "div",
        { class: "verdict-inner", "data-state": row.state },
        sign(row.state),
        element("div", {}, element("p", { class: "sub" }, element("a", { href: "#/" }, "Overview"), ` › ${kind}`), element("h2", { class: "verdict-title" }, row.name, " ", element("small", {}, STATES[row.state])), element("p", { class: "verdict-text" }, row.waits_for ? `Waits for ${row.waits_for}` : "Waits for nothing")),
      ),
  };
}

function alarms(row) {
  if (!row.alarm_texts.length) return null;
  return {
    id: "alarms",
    data: row.alarm_texts,
    draw: () => element("section", { class: "panel urgent", "aria-labelledby": "alarms-title" }, element("h2", { id: "alarms-title" }, plural(row.alarm_texts.length, "open alarm")), element("ol", {}, ...row.alarm_texts.map(alarmItem))),
  };
}

// Points of a curve as one list per topic, with the same distance between moments as in time.
function history(points, key, label) {
  if (!points?.length) return element("p", { class: "empty" }, "No samples yet: the Dag maintain takes them every five minutes");
  const last = Date.parse(points[points.length - 1].at);
  const first = Math.min(Date.parse(points[0].at), last - 3600 * 1000);
  const size = 72;
  const values = new Array(size).fill(null);
  for (const point of points) {
    const n = Math.min(size - 1, Math.floor(((Date.parse(point.at) - first) / Math.max(1, last - first)) * (size - 1)));
    values[n] = Math.max(values[n] ?? 0, point[key] ?? 0);
  }
  const top = Math.max(...values.filter((value) => value != null));
  // Samples are some minutes apart: gaps of up to two points are no gaps.
  for (let n = 1; n < size - 1; n += 1) if (values[n] == null && values[n - 1] != null && (values[n + 1] != null || values[n + 2] != null)) values[n] = values[n - 1];
  return element("figure", {}, curve(values, label, { width: 600, height: 90 }), element("figcaption", {}, element("span", {}, new Date(first).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })), element("span", {}, `at most ${number(top)}`), element("span", {}, new Date(last).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }))));
}

const known = (value, draw) => (value == null ? element("p", { class: "empty" }, "Not known now") : draw(value));

export function makeConsumer(container) {
  return (row) => {
    const counts = facts(
      ["Lag", `${number(row.lag)} of at most ${number(row.limits.lag)}`],
      ["Oldest message waits", row.lag ? duration(row.age_seconds) : "none waits", row.age_seconds && row.sampled_at ? element("small", {}, " as of ", ago(row.sampled_at)) : null].filter(Boolean),
      ["Handled in 24 h", number(row.handled)],
      ["Per minute, now", row.per_minute == null ? "–" : row.per_minute.toFixed(row.per_minute < 10 ? 1 : 0)],
      ["Duplicates", number(row.duplicates)],
      ["Conflicts", number(row.conflicts)],
      ["Dead letters", number(row.dead_letters)],
      row.not_wanted ? ["Not wanted", number(row.not_wanted)] : null,
      ["Open claims", number(row.open_claims)],
      ["Claimed, not handled", number(row.unhandled)],
      row.failing ? ["Ranges that fail", `${number(row.failing)}, retried `, row.retried_at ? ago(row.retried_at) : ""] : null,
      ["Shape", asWords(row.shape)],
      row.effect ? ["Effect", element("code", {}, row.effect)] : null,
      ["Topics", row.topics.map((topic) => topic.topic).join(", ")],
    );
    drawParts(container, [
      title(row, "Consumer"),
      alarms(row),
      { id: "facts", data: [row.lag, row.handled, row.per_minute, row.duplicates, row.conflicts, row.dead_letters, row.open_claims, row.unhandled, row.failing, row.age_seconds], draw: () => panel("Numbers", counts) },
      { id: "history", data: row.history, draw: () => panel("Lag in the last hours", known(row.history, (points) => history(points, "lag", `Lag of ${row.name}`))) },
      { id: "claims", data: row.claims, draw: () => panel("Claims", known(row.claims, claims)) },
      { id: "partitions", data: row.partitions, draw: () => panel("Partitions", known(row.partitions, partitions)) },
      { id: "reasons", data: [row.reasons, row.letters], draw: () => panel("Dead letters in 24 h", known(row.letters, (letters) => letterTable(letters, row.reasons))) },
    ]);
  };
}

function claims(list) {
  const rows = list.flatMap((claim) =>
    (claim.ranges.length ? claim.ranges : [null]).map((range, n) => [
      n ? "" : element("span", {}, claim.closed_at ? "closed " : element("b", {}, "open "), ago(claim.closed_at ?? claim.claimed_at)),
      n ? "" : runs(claim),
      range ? `${range.topic}-${range.partition}` : "no messages",
      range ? `${range.start} – ${range.end - 1}` : "–",
      range ? (range.start === range.end ? "–" : `${number(range.handled)} of ${number(range.end - range.start)}${range.lost ? `, ${number(range.lost)} lost` : ""}`) : "–",
      range?.retried_at ? element("span", {}, "retried ", ago(range.retried_at)) : "",
    ]),
  );
  return table("Claims", [column("Claim"), column("Dag run"), column("Partition"), column("Offsets", right), column("Handled", right), column("Note")], rows, { empty: "No open claim, and none in the last day" });
}

function runs(claim) {
  if (!claim.runs.length) return element("code", {}, claim.run_id);
  return element("span", { title: claim.run_id }, ...claim.runs.flatMap((run, n) => [n ? ", " : "", runLink(run.dag_id, claim.run_id), ` ${run.state}`]));
}

function partitions(list) {
  const rows = list.map((row) => [`${row.topic}-${row.partition}`, number(row.position), number(row.committed), number(row.low), number(row.end), number(row.lag), row.problem ?? ""]);
  return table("Partitions", [column("Partition"), column("Position", right), column("Committed", right), column("Log begins", right), column("Log ends", right), column("Lag", right), column("Note")], rows, { empty: "The topics have no partition yet" });
}

function letterTable(letters, reasons) {
  const summary = Object.entries(reasons ?? {}).map(([reason, count]) => `${number(count)} ${asWords(reason).toLowerCase()}`);
  const rows = letters.map((letter) => [ago(letter.recorded_at), `${letter.topic}-${letter.partition}@${letter.offset}`, asWords(letter.reason), letter.detail ?? ""]);
  return element("div", {}, summary.length ? element("p", { class: "lead" }, summary.join(", ")) : null, table("The latest dead letters", [column("Recorded"), column("Message"), column("Reason"), column("Detail", "wide")], rows, { empty: "None" }));
}

export function makeTopic(container) {
  return (row) => {
    drawParts(container, [
      title(row, "Landed topic"),
      alarms(row),
      { id: "numbers", data: [row.table, row.sink?.not_landed, row.not_landed, row.missing, row.lost], draw: () => panel("Numbers", numbers(row)) },
      { id: "history", data: row.history, draw: () => panel("Records that had not landed", known(row.history, (points) => history(points, "lag", `Not landed of ${row.name}`))) },
      { id: "connector", data: row.connector, draw: () => panel("Connector", known(row.connector, connector)) },
      { id: "offsets", data: [row.table?.partitions, row.sink, row.positions], draw: () => panel("Partitions", known(row.table ?? row.sink, () => offsets(row))) },
      { id: "gaps", data: row.gaps, draw: () => panel("Gaps and repairs", known(row.gaps, gaps)) },
    ]);
  };
}

function numbers(row) {
  const stored = row.table ?? {};
  return facts(
    ["Not landed", number(row.sink?.not_landed ?? row.not_landed)],
    ["Rows", number(stored.rows ?? row.rows)],
    ["Clean rows", number(stored.clean_rows)],
    ["Files", `${number(stored.files)}${stored.bytes == null ? "" : `, ${bytes(stored.bytes)}`}`],
    ["Snapshots", number(stored.snapshots)],
    ["Last commit", stored.committed_at ?? row.committed_at ? ago(stored.committed_at ?? row.committed_at) : "–"],
    ["Missing offsets", number(row.missing)],
    ["Lost offsets", number(row.lost)],
    ["Table", stored.table ? element("code", {}, stored.table) : "–"],
    ["Consumers", row.consumers.length ? element("span", {}, ...row.consumers.flatMap((name, n) => [n ? ", " : "", viewLink("consumers", name)])) : "none"],
  );
}

function connector(state) {
  return element("div", {}, table("Connector and tasks", [column("Part"), column("State")], [["Connector", asWords(state.state.toLowerCase())], ...state.tasks.map((task) => [`Task ${task.task}`, asWords(task.state.toLowerCase())])]), state.cause ? element("p", { class: "lead bad" }, state.cause) : null);
}

function offsets(row) {
  const parts = new Map();
  const of = (partition) => parts.get(partition) ?? parts.set(partition, { partition }).get(partition);
  for (const part of row.table?.partitions ?? []) Object.assign(of(part.partition), part);
  for (const part of row.sink?.partitions ?? []) Object.assign(of(part.partition), { end: part.end, read: part.committed });
  for (const part of row.positions ?? []) if (row.consumers.includes(part.consumer)) of(part.partition).claimed = part.next_offset;
  const rows = [...parts.values()].sort((a, b) => a.partition - b.partition).map((part) => [`${row.name}-${part.partition}`, number(part.end), number(part.read), number(part.landed_end), number(part.contiguous_end), number(part.claimed)]);
  return table("Partitions", [column("Partition"), column("Log ends", right), column("Sink has read", right), column("Landed up to", right), column("Complete up to", right), column("Claimed up to", right)], rows, { empty: "Nothing has landed yet" });
}

function gaps(list) {
  const rows = list.map((gap) => [asWords(gap.state), `${gap.partition}`, `${gap.start} – ${gap.end - 1}`, number(gap.offsets), number(gap.records), ago(gap.found_at)]);
  return table("Gaps", [column("State"), column("Partition", right), column("Offsets", right), column("Missing", right), column("Appended", right), column("Found")], rows, { empty: "No offset was ever missing" });
}

