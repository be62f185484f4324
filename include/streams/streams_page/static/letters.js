// The inbox of dead letters: list, filters, search, selection; and one letter with its content.

import { confirmAction } from "./actions.js";
import { ago, asWords, bytes, drawList, element, facts, number, panel, plural, viewLink } from "./dom.js";

const WRITERS = { streams: "This project", connect: "Kafka Connect", kafka_streams: "Kafka Streams", spring: "Spring", other: "Another program" };
const HOURS = { 1: "the last hour", 24: "the last day", 168: "the last week", 720: "the last 30 days" };
const OUTCOMES = { replayed: "Replayed", duplicate: "Another copy was replayed", settled: "Settled: will not be replayed", failing: "Still fails", unreadable: "Not readable by a replay" };
const DONE = ["replayed", "duplicate", "settled"];

export const listUrl = (query = "") => `state/dead-letters${query ? `?${query}` : ""}`;

export function makeLetters(container, query = "") {
  const parameters = new URLSearchParams(query);
  const selected = new Set();
  let data = null;
  const go = (changes) => {
    for (const [name, value] of Object.entries(changes)) value ? parameters.set(name, value) : parameters.delete(name);
    if (!("before" in changes)) parameters.delete("before");
    location.hash = `#/dead-letters/${encodeURIComponent(parameters.toString())}`;
  };
  const search = element("input", { type: "search", id: "search", value: parameters.get("search") ?? "", placeholder: "Reason, field, run, topic-0@15, or a whole key" });
  const form = element("form", { class: "tools", role: "search" }, field("Search", search));
  const selects = {};
  for (const [name, label] of [["topic", "Topic"], ["reason", "Reason"], ["consumer", "Consumer"], ["writer", "Written by"], ["hours", "Time"], ["state", "State"]]) {
    selects[name] = element("select", { id: `filter-${name}` });
    selects[name].addEventListener("change", () => go({ [name]: selects[name].value }));
    form.append(field(label, selects[name]));
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    go({ search: search.value.trim() });
  });
  const title = element("h2", { id: "letters-title" }, "Dead letters");
  const list = element("ol", { class: "letters" });
  const tools = element("div", { class: "buttons" });
  const pages = element("div", { class: "buttons" });
  container.replaceChildren(form, element("section", { class: "panel", "aria-labelledby": "letters-title" }, title, tools, list, pages));

  function fill(name, options, all) {
    const value = parameters.get(name) ?? "";
    const known = Object.entries(options);
    if (value && !known.some(([key]) => key === value)) known.push([value, value]);
    const text = JSON.stringify([known, value]);
    if (selects[name].filled === text) return;
    selects[name].filled = text;
    selects[name].replaceChildren(element("option", { value: "" }, all), ...known.map(([key, label]) => element("option", { value: key, selected: key === value }, label)));
  }
  const counted = (facet, label = (name) => name) => Object.fromEntries(Object.entries(facet ?? {}).map(([name, count]) => [name, `${label(name)} (${number(count)})`]));

  function drawTools() {
    const topic = parameters.get("topic");
    const chosen = (data?.letters ?? []).filter((letter) => selected.has(letter.id));
    const topics = new Set(chosen.map((letter) => letter.topic));
    const parts = [];
    if (chosen.length && topics.size === 1) parts.push(...letterButtons([...topics][0], chosen));
    else if (chosen.length) parts.push(element("p", { class: "sub" }, "Select letters of one topic to replay or settle them."));
    else if (topic && data?.total) parts.push(action(`Replay all ${number(data.total)}`, queryAction("replay_dead_letters", topic)), action(`Settle all ${number(data.total)}`, queryAction("settle_dead_letters", topic)));
    else parts.push(element("p", { class: "sub" }, data?.total ? "Select letters, or choose a topic, to replay or settle them." : ""));
    tools.replaceChildren(...parts);
  }

  function queryAction(dag, topic) {
    const reason = parameters.get("reason");
    const hours = parameters.get("hours");
    const conf = { topic, ...(hours ? { since: new Date(Date.now() - hours * 3600 * 1000).toISOString() } : {}) };
    const narrowed = ["search", "consumer", "writer"].filter((name) => parameters.get(name));
    const what = `dead letters of ${topic}${reason ? ` with the reason ${asWords(reason).toLowerCase()}` : ""}${hours ? ` of ${HOURS[hours]}` : ""}`;
    const wide = narrowed.length ? [`The filter by ${narrowed.join(" and ")} does not count here: the run takes all ${what}.`] : [];
    if (dag === "replay_dead_letters") return { title: `Replay the ${what}`, text: ["Messages that now pass their contract, unchanged or after a repair, are sent to their topic again, at most 10,000. The others stay here.", ...wide], dag, conf: { ...conf, ...(reason ? { reason } : {}), limit: 10000 }, why: "why", button: "Replay" };
    return { title: `Settle the ${what}`, text: ["No replay sends them any more, until somebody reopens them. They stay in the topic.", ...wide], dag, conf: { ...conf, ...(reason ? { letter_reason: reason } : {}), action: "settle" }, button: "Settle" };
  }

  function item(letter) {
    const box = element("input", { type: "checkbox", "aria-label": `Select ${letter.id}`, disabled: letter.writer !== "streams" || DONE.includes(letter.outcome) });
    box.checked = selected.has(letter.id);
    box.addEventListener("change", () => {
      selected[box.checked ? "add" : "delete"](letter.id);
      drawTools();
    });
    return element(
      "li",
      { class: "letter", "data-letter": letter.id },
      box,
      element(
        "div",
        {},
        element("p", {}, element("b", {}, viewLink("letter", letter.id, asWords(letter.reason))), ` ${where(letter)}`, letter.outcome ? element("span", { class: `tag ${letter.outcome}` }, OUTCOMES[letter.outcome] ?? asWords(letter.outcome)) : null),
        letter.detail ? element("p", { class: "message" }, letter.detail) : null,
        element("p", { class: "meta" }, element("span", {}, ago(letter.written_at)), element("span", {}, letter.consumer ? `by ${letter.consumer}` : WRITERS[letter.writer]), element("span", {}, bytes(letter.size_bytes))),
      ),
    );
  }

  return (document_) => {
    data = document_;
    title.textContent = data.letters ? plural(data.total, parameters.get("state") === "all" ? "dead letter" : "open dead letter") : "Not known now";
    fill("topic", { ...Object.fromEntries((data.topics ?? []).map((name) => [name, name])), ...counted(data.facets?.topic) }, "All topics");
    fill("reason", counted(data.facets?.reason, (name) => asWords(name)), "All reasons");
    fill("consumer", counted(data.facets?.consumer), "All consumers");
    fill("writer", counted(data.facets?.writer, (name) => WRITERS[name] ?? name), "Anyone");
    fill("hours", HOURS, "Any time");
    fill("state", { all: "Also done" }, "Open");
    const rows = data.letters ?? [];
    drawList(list, rows.length ? rows : [{ id: "", empty: true }], (row) => row.id, (row) => (row.empty ? element("li", { class: "empty" }, data.letters ? "No dead letter. New ones appear here within seconds." : "The list is not known now") : item(row)));
    drawTools();
    const more = element("button", { type: "button" }, "Older");
    more.addEventListener("click", () => go({ before: data.next }));
    const first = element("button", { type: "button" }, "Newest");
    first.addEventListener("click", () => go({ before: "" }));
    pages.replaceChildren(...(parameters.get("before") ? [first] : []), ...(data.next ? [more] : []));
  };
}

const field = (label, input) => element("label", { class: "field" }, element("span", {}, label), input);
const where = (letter) => (letter.source_offset != null && letter.source_offset >= 0 ? `${letter.topic}-${letter.source_partition}@${letter.source_offset}` : letter.topic);

function action(label, options) {
  const node = element("button", { type: "button" }, label);
  node.addEventListener("click", () => confirmAction(options));
  return node;
}

function letterButtons(topic, letters) {
  const named = letters.map((letter) => `${letter.partition}@${letter.offset}`);
  const what = letters.length === 1 ? `this dead letter of ${topic}` : `${number(letters.length)} dead letters of ${topic}`;
  return [
    action(letters.length === 1 ? "Replay" : `Replay ${number(letters.length)}`, { title: `Replay ${what}`, text: "A message that now passes its contract, unchanged or after a repair, is sent to its topic again. It has its effect once, however often it is replayed.", dag: "replay_dead_letters", conf: { topic, letters: named }, why: "why", button: "Replay" }),
    action(letters.length === 1 ? "Settle" : `Settle ${number(letters.length)}`, { title: `Settle ${what}`, text: "No replay sends it any more, until somebody reopens it. It stays in the dead-letter topic.", dag: "settle_dead_letters", conf: { topic, letters: named, action: "settle" }, button: "Settle" }),
  ];
}

export const letterUrl = (id) => `state/dead-letters/${id.split("/").map(encodeURIComponent).join("/")}`;

export function makeLetter(container) {
  return (letter) => {
    const { content } = letter;
    const parts = [
      {
        id: "title",
        state: [letter.reason, letter.outcome],
        draw: () =>
          element(
            "div",
            { class: "verdict-inner", "data-state": DONE.includes(letter.outcome) ? "well" : "late" },
            element("div", {}, element("p", { class: "sub" }, element("a", { href: "#/dead-letters" }, "Dead letters"), ` › ${letter.topic}.dlq-${letter.partition}@${letter.offset}`), element("h2", { class: "verdict-title" }, asWords(letter.reason)), letter.detail ? element("p", { class: "verdict-text" }, letter.detail) : null),
            letter.writer === "streams" && !DONE.includes(letter.outcome) ? element("div", { class: "buttons" }, ...letterButtons(letter.topic, [letter])) : null,
          ),
      },
      { id: "facts", row: { ...letter, content: null }, draw: () => panel("Where it comes from", facts(["Message", where(letter)], ["Consumer", letter.consumer && letter.writer === "streams" ? viewLink("consumers", letter.consumer) : letter.consumer ?? "–"], ["Written by", WRITERS[letter.writer]], ["Written", ago(letter.written_at)], ["Dag run", letter.run_id ? element("code", {}, letter.run_id) : "–"], ["Size", bytes(letter.size_bytes)], letter.outcome ? ["Replay", OUTCOMES[letter.outcome] ?? letter.outcome, letter.outcome_detail ? element("small", {}, ` ${letter.outcome_detail}`) : null].filter(Boolean) : null)) },
      { id: "payload", content, removed: letter.is_removed, draw: () => panel("Content", ...payload(letter)) },
    ];
    if (content?.repair) parts.push({ id: "repair", repair: content.repair, draw: () => panel("What a replay would send", ...repair(content)) });
    if (content) parts.push({ id: "headers", headers: content.headers, draw: () => panel("Headers", content.headers.length ? element("dl", { class: "headers" }, ...content.headers.flatMap(({ name, value }) => [element("dt", {}, name), element("dd", {}, value ?? "no value")])) : element("p", { class: "empty" }, "None")) });
    drawList(container, parts, (part) => part.id, (part) => part.draw());
  };
}

function payload({ content, is_removed: removed }) {
  if (!content) return [element("p", { class: "empty" }, removed ? "Retention has removed this dead letter" : "Not known now")];
  return [
    content.is_masked ? element("p", { class: "lead sub" }, "Personal data are masked: you have no permission to see them.") : null,
    element("p", { class: "lead" }, "Key: ", element("code", {}, content.key ?? "none")),
    element("pre", { class: "payload", tabindex: "0" }, content.payload ?? "The message has no value."),
  ].filter(Boolean);
}

function repair(content) {
  const { repair: result } = content;
  const text = element("p", { class: `lead${result.passes === false ? " bad" : ""}` }, result.text);
  return result.payload == null ? [text] : [text, element("pre", { class: "payload", tabindex: "0" }, ...difference(content.payload ?? "", result.payload))];
}

// The lines of both texts: those that only one of them has are marked with - or +, and with a colour.
function difference(before, after) {
  const a = before.split("\n").slice(0, 400);
  const b = after.split("\n").slice(0, 400);
  const common = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) for (let j = b.length - 1; j >= 0; j -= 1) common[i][j] = a[i] === b[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
  const lines = [];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      lines.push(element("span", {}, `  ${a[i]}\n`));
      i += 1;
      j += 1;
    } else if (i < a.length && (j >= b.length || common[i + 1][j] >= common[i][j + 1])) lines.push(element("del", {}, `- ${a[i++]}\n`));
    else lines.push(element("ins", {}, `+ ${b[j++]}\n`));
  }
  return lines;
}
