// The Streams page: chooses the view by the address, and keeps it up to date.

import { makeConsumer, makeTopic } from "./details.js";
import { byId, element, setSkew, tick } from "./dom.js";
import { makeOverview } from "./overview.js";
import { poll } from "./poll.js";
import { runbook } from "./runbook.js";

const FAILURES = { unreachable: "Connection lost", unavailable: "Airflow cannot read the state", missing: "Not found" };
const page = { stop: null, failure: null, confirmedAt: null, problems: [] };

const address = (part) => encodeURIComponent(part);
const VIEWS = {
  "": { view: "overview", title: "Streams", make: makeOverview, url: () => "state" },
  consumers: { view: "overview", make: makeConsumer, url: (name) => `state/consumers/${address(name)}` },
  topics: { view: "overview", make: makeTopic, url: (name) => `state/topics/${address(name)}` },
  runbooks: { view: "overview", show: showRunbook },
};

function show() {
  page.stop?.();
  Object.assign(page, { stop: null, failure: null, confirmedAt: null, problems: [] });
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  const view = VIEWS[name] ?? VIEWS[""];
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const container = element("div", { class: `view ${view.view}` });
  byId("content").replaceChildren(container);
  document.title = rest[0] ? `${rest[0]} – Streams` : "Streams";
  document.body.dataset.connection = "waiting";
  drawNotice();
  if (view.show) {
    view.show(container, ...rest);
    return;
  }
  const draw = view.make(container);
  page.stop = poll(view.url(...rest), {
    onData(data) {
      page.problems = data.problems ?? [];
      draw(data);
    },
    onAnswer({ at, skewMs }) {
      setSkew(skewMs);
      Object.assign(page, { confirmedAt: at, failure: null });
      connected("live", "Live");
    },
    onFailure({ kind }) {
      // Reloading shows the login page.
      if (kind === "logged_out") return location.reload();
      page.failure = kind;
      connected("lost", FAILURES[kind]);
    },
  });
}

async function showRunbook(container, file, section) {
  connected("live", "Live");
  const answer = await fetch(`runbooks/${address(file)}`).catch(() => null);
  if (answer?.status === 401) return location.reload();
  const text = answer?.ok ? await answer.text() : null;
  const back = element("p", { class: "sub" }, element("a", { href: "#/" }, "Overview"), " › Runbook");
  container.replaceChildren(element("article", { class: "panel runbook" }, back, ...(text == null ? [element("p", {}, `This deployment has no copy of docs/runbooks/${file}.`)] : runbook(text))));
  const target = section && document.getElementById(`section-${section}`);
  if (target) target.focus();
}

function connected(state, text) {
  document.body.dataset.connection = state;
  if (byId("connection").textContent !== text) byId("connection").textContent = text;
  drawNotice();
}

function notice() {
  const at = page.confirmedAt ? ` The page shows what was known at ${new Date(page.confirmedAt).toLocaleTimeString()}.` : "";
  if (page.failure === "unreachable") return `No connection to Airflow.${at} Trying again.`;
  if (page.failure === "unavailable") return `Airflow answers, but cannot read the state.${at} Trying again.`;
  if (page.failure === "missing") return "The project has nothing of this name.";
  if (!page.problems.length) return "";
  return `${page.problems.map(({ service, text }) => `${service} ${text}`).join("; ")}. Values from there are not shown.`;
}

function drawNotice() {
  const text = notice();
  const container = byId("notice");
  // Set only when it changes: a screen reader reads the text each time it is set.
  if (container.textContent !== text) container.textContent = text;
  container.hidden = !text;
}

addEventListener("hashchange", () => {
  // The link that skips the navigation is no view.
  if (location.hash === "#content") return;
  show();
  byId("content").focus({ preventScroll: true });
  scrollTo(0, 0);
});
show();
setInterval(tick, 1000);
