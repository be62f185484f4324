// Actions: a confirmation in plain words, then a run of a Dag of dags/operations/, started through Airflow's own REST API
// with the session and the rights of the user. This page has no rights of its own.

import { element, runLink } from "./dom.js";

const FOLLOW_MS = 1500;
// A queued run starts within seconds, unless its Dag is paused.
const QUEUED_MS = 30000;
const REFUSED = { 400: "Airflow refuses the parameters.", 401: "You are logged out. Reload the page.", 403: "You may not start this Dag. Ask for the right to trigger its runs.", 404: "This deployment has no such Dag, or you may not see it.", 409: "Another run has the same time. Try again.", 422: "Airflow refuses the parameters." };

const api = (path) => `../../api/v2/${path}`;

async function call(path, options = {}) {
  const answer = await fetch(api(path), { credentials: "same-origin", cache: "no-store", ...options, headers: { Accept: "application/json", ...(options.body ? { "Content-Type": "application/json" } : {}) } });
  if (answer.ok) return answer.json();
  const body = await answer.json().catch(() => ({}));
  const detail = typeof body.detail === "string" && ![401, 403].includes(answer.status) ? ` ${body.detail}` : "";
  throw new Error(`${REFUSED[answer.status] ?? `Airflow answers with the error ${answer.status}.`}${detail}`);
}

// Opens the confirmation. `text` says what will happen; `conf` are the parameters of the Dag; `why` is the name of its
// parameter with the reason; `dryRun` offers to show first what would be done.
export function confirmAction({ title, text, dag, conf, why = "reason", whyNeeded = true, dryRun = true, button = "Start", onDone = null }) {
  const reason = element("textarea", { id: "action-reason", rows: 2, maxlength: 500, required: whyNeeded });
  const trial = element("input", { type: "checkbox", id: "action-dry", checked: dryRun });
  const start = element("button", { class: "main", type: "submit" }, dryRun ? "Show what would be done" : button);
  const close = element("button", { type: "button" }, "Cancel");
  const status = element("div", { class: "action-status", role: "status", "aria-live": "polite" });
  const form = element(
    "form",
    {},
    element("h2", { id: "action-title" }, title),
    ...[text].flat().map((part) => element("p", {}, part)),
    dryRun ? element("p", {}, element("label", {}, trial, " Only show what would be done. Nothing is changed.")) : null,
    element("p", {}, element("label", { for: "action-reason" }, "Why? It is recorded with your name."), reason),
    element("p", { class: "sub" }, "This starts a run of the Dag ", element("code", {}, dag), " with your rights."),
    status,
    element("div", { class: "buttons" }, start, close),
  );
  const dialog = element("dialog", { "aria-labelledby": "action-title" }, form);
  const isTrial = () => dryRun && trial.checked;
  trial.addEventListener("change", () => {
    start.textContent = isTrial() ? "Show what would be done" : button;
    reason.required = whyNeeded && !isTrial();
  });
  reason.required = whyNeeded && !isTrial();
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    start.disabled = true;
    close.textContent = "Close";
    try {
      const body = { logical_date: null, conf: { ...conf, [why]: reason.value.trim(), dry_run: isTrial() } };
      status.replaceChildren("Starting the run.");
      const run = await call(`dags/${encodeURIComponent(dag)}/dagRuns`, { method: "POST", body: JSON.stringify(body) });
      const state = await follow(dag, run.dag_run_id, status, dialog);
      if (state === "success" && !isTrial()) onDone?.();
      // After a dry run, the same dialog can do it.
      if (isTrial() && state === "success") {
        trial.checked = false;
        trial.dispatchEvent(new Event("change"));
        start.disabled = false;
      }
    } catch (error) {
      status.replaceChildren(element("p", { class: "bad" }, error instanceof TypeError ? "No connection to Airflow. Look at the Dag's runs before you try again." : error.message));
      start.disabled = false;
    }
  });
  document.body.append(dialog);
  dialog.showModal();
  reason.focus();
}

async function follow(dag, runId, status, dialog) {
  const began = Date.now();
  const path = `dags/${encodeURIComponent(dag)}/dagRuns/${encodeURIComponent(runId)}`;
  for (;;) {
    let state = "queued";
    try {
      ({ state } = await call(path));
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
    }
    const late = state === "queued" && Date.now() - began > QUEUED_MS ? " Is the Dag paused?" : "";
    const shown = [element("p", {}, "The run ", runLink(dag, runId), ` is ${state}.${late}`)];
    if (["success", "failed"].includes(state)) shown.push(...(await report(path, state)));
    status.replaceChildren(...shown);
    if (["success", "failed"].includes(state) || !dialog.isConnected) return state;
    await new Promise((resolve) => setTimeout(resolve, FOLLOW_MS));
  }
}

// The return value of the run's last task, as text.
async function report(path, state) {
  if (state === "failed") return [element("p", { class: "bad" }, "The run failed. Its log says why.")];
  try {
    const tasks = await call(`${path}/taskInstances`);
    const done = tasks.task_instances.filter((task) => task.state === "success").sort((a, b) => String(b.end_date).localeCompare(String(a.end_date)));
    if (!done.length) return [element("p", {}, "There was nothing to do.")];
    const entry = await call(`${path}/taskInstances/${encodeURIComponent(done[0].task_id)}/xcomEntries/return_value?stringify=true`);
    return [element("pre", { tabindex: "0" }, readable(entry.value))];
  } catch {
    return [element("p", {}, "Its result is in the log.")];
  }
}

function readable(value) {
  try {
    return JSON.stringify(JSON.parse(value), null, 2).slice(0, 8000);
  } catch {
    return String(value).slice(0, 8000);
  }
}

const button = (label, action) => {
  const node = element("button", { type: "button" }, label);
  node.addEventListener("click", () => confirmAction(action));
  return node;
};

// The actions for an alarm: the remedy first.
export function alarmActions(alarm, { onDone = null } = {}) {
  const buttons = [];
  if (alarm.kind === "consumer_stopped" && alarm.consumer && alarm.key) {
    buttons.push(button("Reset", { title: `Continue ${alarm.consumer} on ${alarm.key}`, text: "The consumer continues with the records that the topic has now. It handles all of them.", dag: "reset_consumer", conf: { consumer: alarm.consumer, topic: alarm.key }, button: "Reset the consumer", onDone }));
  }
  if (alarm.kind === "suite_failed" && alarm.consumer && /^[0-9]+$/.test(alarm.key)) {
    buttons.push(button("Accept the data", { title: `Accept the data of claim ${alarm.key}`, text: "The run broke its suite. If you accept its data, they reach all tables that depend on them.", dag: "accept_suite", conf: { consumer: alarm.consumer, claim: Number(alarm.key) }, button: "Accept the data", onDone }));
  }
  buttons.push(button("Close", { title: "Close this alarm", text: "Close it if its cause is gone. If a check finds the cause again, the alarm opens again.", dag: "close_alarm", conf: { source: alarm.source, kind: alarm.kind, key: alarm.key }, button: "Close the alarm", onDone }));
  return element("div", { class: "buttons" }, ...buttons);
}

export const connectorActions = (connector) => element("div", { class: "buttons" }, button("Restart the connector", { title: `Restart ${connector}`, text: "The failed parts of the connector are restarted. A restart loses no record.", dag: "operate_connector", conf: { connector, action: "restart" }, button: "Restart" }));

export const landingActions = (topic) => element("div", { class: "buttons" }, button("Repair the gaps", { title: `Repair the landing table of ${topic}`, text: "All offsets that are missing are read from Kafka and appended to the table, once.", dag: "repair_landing", conf: { topic }, button: "Repair the gaps" }));
