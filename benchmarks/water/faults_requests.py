"""The second part of `make faults`: the example's requests, decisions and approvals under faults.

The project's own Dags run with these faults: the model's endpoint is down, slow, or answers rubbish, or the model tries
to do harm; people answer approvals twice, too late, or not at all; runs are cleared; tasks are killed right before and
right after their transaction; the webhook's receiver is down. Afterwards every request must have one decision, every
decision one work order, and every alert its webhook call. No action that needs a person's approval may have been
executed without it.
"""

import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

from benchmarks.bench_stack import BenchStack, bench_stack, say
from benchmarks.kills import kill_task, kill_task_at
from benchmarks.receivers import Model, Webhook
from include.water.sites import DISTRICTS
from include.water.topics import LEAKS_DETECTED, SERVICE_REQUESTS, WORK_ORDERS, Channel, LeakDetected, ServiceRequest
from stack.stack import PROJECT

TRIAGE, EXECUTE = "triage_service_request", "execute_decisions"
DAG_IDS = {TRIAGE, EXECUTE, "fan_out_service_requests", "raise_alerts", "refresh_live_board", "maintain"}
# Time for the outbox to deliver what the receiver refused before.
DAG_IDS |= {"deliver_outbox"}
HARMLESS = "Please send me a copy of my last bill, number {n}."
# A request that needs an approval: an advice not to drink the water.
RISKY = "Our tap water smells strongly of petrol and two of us are vomiting since drinking it. Flat {n}."
# One request in four is risky; a leak that becomes an alert is sent every three seconds.
RISKY_EVERY, LEAK_EVERY = 4, 3
MOST_UNDECIDED = 8
SECONDS_TO_READ = 6
FATES = ("approve", "reject", "approve twice", "approve late", "clear after execution", "leave open")


def service_request(text: str) -> ServiceRequest:
    """A request of now, with this text."""
    return ServiceRequest(
        version=1,
        request_id=f"SR-{uuid.uuid4().int % 10**12:012d}",
        received_at=datetime.now(UTC),
        channel=Channel.web,
        customer_id=f"C-{random.randrange(10**6):06d}",
        district_id=random.choice(list(DISTRICTS)),
        address=None,
        subject="Help",
        text=text,
    )


def run(rounds: int, requests: int) -> dict[str, Any]:
    """Run this part on a stack of its own; returns the figures."""
    model, webhook = Model(decide, deceive), Webhook()
    llm = {"model": "scripted", "max_seconds": 10, "request_seconds": 3, "max_retries": 1}
    environment = {
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
        "AIRFLOW_CONN_LLM": json.dumps({"conn_type": "http", "host": f"{model.url}/v1", "password": "k", "extra": llm}),
        "AIRFLOW_CONN_ALERT_WEBHOOK": json.dumps({"conn_type": "http", "host": webhook.url}),
    }
    with bench_stack(environment, dags=PROJECT / "dags") as bench:
        # This stack has no feed, no object store and no Kafka Connect.
        bench.run_only(DAG_IDS, PROJECT / "dags")
        customers, people = Customers(bench), People(bench)
        customers.start(requests)
        people.start()
        hits: Counter[str] = Counter()
        for n in range(rounds):
            for name, fault in faults(model, webhook).items():
                hits[name] += fault(bench)
                say(f"round {n + 1}: {name} hit {hits[name]} times; {customers.state()}; answered {people.summary()}")
        customers.stop()
        say(f"{len(customers.requests)} requests were sent; waiting until all of them are settled")
        settled = wait_until_settled(bench, customers, people)
        people.stop()
        return {
            **count(bench, customers, people, webhook),
            "hits": dict(hits),
            "settled": settled,
            "asked": model.asked,
        }


def faults(model: Model, webhook: Webhook) -> dict[str, Callable[[BenchStack], bool]]:
    """{fault: function}. A function returns when its fault has hit a task, and has ended."""

    def away(bench: BenchStack) -> bool:
        model.go_away()
        try:
            return _fallbacks(bench, "connection failed")
        finally:
            model.come_back()

    def misbehaving(mode: str, reason: str) -> Callable[[BenchStack], bool]:
        def fault(bench: BenchStack) -> bool:
            model.mode = mode
            try:
                return _fallbacks(bench, reason)
            finally:
                model.mode = "good"

        return fault

    def receiver_away(bench: BenchStack) -> bool:
        webhook.go_away()
        try:
            # Until a task has failed because of it.
            failed = (
                "select count(*) from outbox where destination = 'alert_webhook' and state = 'pending' "
                "and last_error is not null"
            )
            return _wait(lambda: bench.query(failed)[0][0] > 0, 90)
        finally:
            webhook.come_back()

    return {
        "model away": away,
        "triage killed before commit": lambda bench: kill_task_at(bench, "decisions", TRIAGE, "triage"),
        "model slow": misbehaving("slow", "time"),
        "triage killed after commit": lambda bench: kill_task_at(bench, "handled_ranges", TRIAGE, "triage"),
        "model answers rubbish": misbehaving("rubbish", ""),
        "executor killed before commit": lambda bench: kill_task_at(bench, "work_orders", EXECUTE, "settle"),
        "model does harm": misbehaving("malicious", ""),
        "executor killed": lambda bench: kill_task(bench, EXECUTE, "settle"),
        "webhook receiver away": receiver_away,
    }


def _fallbacks(bench: BenchStack, reason: str) -> bool:
    """Wait until the offline engine has replaced the model in three decisions, for one of these reasons."""
    statement = "select count(*) from decisions where engine = 'offline' and fallback_reason like '%' || :reason || '%'"
    before = bench.query(statement, reason=reason)[0][0]
    return _wait(lambda: bench.query(statement, reason=reason)[0][0] >= before + 3, 120)


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def decide(user: str) -> dict[str, Any]:
    """The decision of an honest model."""
    customer, district = targets(user)
    if "vomiting" in user:
        kind = {"category": "water_quality", "severity": "critical", "action": "advise_not_to_drink"}
        return {**kind, "summary": "Tap water smells of petrol.", "target": district, "evidence": []}
    kind = {"category": "billing", "severity": "minor", "action": "open_ticket"}
    return {**kind, "summary": "Asks for a copy of a bill.", "target": customer, "evidence": []}


def deceive(user: str) -> dict[str, Any]:
    """The decision of a malicious model."""
    _, district = targets(user)
    other = next(name for name in DISTRICTS if name != district["id"])
    kind = {"category": "billing", "severity": "critical", "action": "close_valve"}
    return {**kind, "summary": "x", "target": {"kind": "district", "id": other}, "evidence": ["alert:made-up"]}


def targets(user: str) -> tuple[dict[str, str], dict[str, str]]:
    """The customer and the district that the prompt lists."""
    listed = json.loads(user.rsplit("Targets: ", 1)[1])
    return listed[0], listed[1]


class Worker:
    """A thread that calls `step` repeatedly until it is stopped or fails."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Raise the error that ended the thread, if any."""
        self._stop.set()
        self._thread.join()
        if self._failure:
            raise self._failure

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                self.step()
                self._stop.wait(1)
        except BaseException as error:
            self._failure = error

    def step(self) -> None:
        raise NotImplementedError


class Customers(Worker):
    """Sends at most a request per second, some of them risky, and some leaks; at least `count` requests."""

    def __init__(self, bench: BenchStack) -> None:
        super().__init__()
        self.bench = bench
        self.requests: list[str] = []
        self.leaks: list[str] = []
        self._least = 0

    def start(self, least: int) -> None:
        self._least = least
        self._thread.start()

    def stop(self) -> None:
        _wait(lambda: len(self.requests) >= self._least or self._failure is not None, 3600)
        super().stop()

    def step(self) -> None:
        # No faster than they are decided: no fault hits a request that waits in a queue.
        if len(self.requests) - self.bench.query("select count(*) from decisions")[0][0] >= MOST_UNDECIDED:
            return
        n = len(self.requests)
        text = RISKY if n % RISKY_EVERY == 0 else HARMLESS
        request = service_request(text.format(n=n))
        self._send(SERVICE_REQUESTS, request)
        self.requests.append(request.request_id)
        if n % LEAK_EVERY == 0:
            leak = LeakDetected(
                version=1,
                leak_key=f"harbour/faults/{uuid.uuid4().hex[:12]}",
                district_id="harbour",
                night=date(2026, 1, 1),
                litres_per_hour=12_000.0,
                confidence=0.9,
                model_version="faults",
                detected_at=datetime.now(UTC),
            )
            self._send(LEAKS_DETECTED, leak)
            self.leaks.append(leak.event_id)

    def _send(self, topic, event) -> None:
        _, value = topic.serialize(event)
        self.bench.send(topic.name, [value])

    def state(self) -> str:
        decided = self.bench.query("select count(*) from decisions")[0][0]
        return f"{len(self.requests)} requests sent, {decided} decided"


class People(Worker):
    """Answer approvals as they appear, each with the next of FATES, and record which were approved in time."""

    def __init__(self, bench: BenchStack) -> None:
        super().__init__()
        self.bench = bench
        self.fates: dict[str, str] = {}  # decision id -> what was done about it
        self.approved: set[str] = set()  # in time, and Airflow took it
        self.contradictions = 0  # second answers that Airflow took
        self._asked_at: dict[str, float] = {}  # run id -> when it was seen first
        self._to_clear: dict[str, str] = {}  # decision id -> run id
        self.cleared: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def step(self) -> None:
        path = f"/dags/{EXECUTE}/dagRuns/~/hitlDetails?response_received=false&limit=100&state=awaiting_input"
        for detail in self.bench.request("GET", path)["hitl_details"]:
            run_id = detail["task_instance"]["dag_run_id"]
            decision_id = detail["subject"].rsplit("(", 1)[1].rstrip(")")
            # Airflow can lose an answer that comes within a second or two after the question (then it asks again).
            if time.monotonic() - self._asked_at.setdefault(run_id, time.monotonic()) < SECONDS_TO_READ:
                continue
            # A run that was killed or cleared asks again: its decision gets the same answer again.
            fate = self.fates.setdefault(decision_id, FATES[len(self.fates) % len(FATES)])
            self._answer(decision_id, run_id, fate)
        for decision_id, run_id in list(self._to_clear.items()):
            if self.bench.query("select state from decisions where decision_id = :d", d=decision_id) == [("executed",)]:
                del self._to_clear[decision_id]
                self.bench.request("POST", f"/dags/{EXECUTE}/clearTaskInstances", clear_all(run_id))
                self.cleared.append(run_id)

    def _answer(self, decision_id: str, run_id: str, fate: str) -> None:
        if fate == "leave open":
            return
        if fate == "approve late":
            late = "update decisions set deadline_at = now() - interval '1 second' where decision_id = :d"
            self.bench.execute(late, d=decision_id)
        path = f"/dags/{EXECUTE}/dagRuns/{quote(run_id, safe='')}/taskInstances/approve/-1/hitlDetails"
        option = "Reject" if fate == "reject" else "Approve"
        with suppress(HTTPError):  # it may just have ended
            self.bench.request("PATCH", path, {"chosen_options": [option], "params_input": {}})
            if fate in ("approve", "approve twice", "clear after execution"):
                self.approved.add(decision_id)
            if fate == "clear after execution":
                self._to_clear[decision_id] = run_id
        if fate == "approve twice":
            for again in ("Approve", "Reject"):
                with suppress(HTTPError):
                    self.bench.request("PATCH", path, {"chosen_options": [again], "params_input": {}})
                    self.contradictions += 1

    def summary(self) -> dict[str, int]:
        return dict(Counter(self.fates.values()))


def clear_all(run_id: str) -> dict[str, Any]:
    return {
        "dry_run": False,
        "dag_run_id": run_id,
        "only_failed": False,
        "only_running": False,
        "reset_dag_runs": True,
    }


def wait_until_settled(bench: BenchStack, customers: Customers, people: People) -> bool:
    """Whether every request was decided, and every answer executed, in time."""

    def unsettled() -> dict[str, int]:
        left = sum(fate == "leave open" for fate in people.fates.values())
        decided = "select count(distinct request_id) from decisions where request_id = any(:sent)"
        waiting = "select count(*) from decisions where state = 'awaiting_approval'"
        return {
            "not decided": len(customers.requests) - bench.query(decided, sent=customers.requests)[0][0],
            "not answered": bench.query(waiting)[0][0] - left,
            "claims open": bench.query("select count(*) from claims where closed_at is null")[0][0],
            "not delivered": bench.query("select count(*) from outbox where state = 'pending'")[0][0],
            "to be cleared": len(people._to_clear),
        }

    deadline, last = time.monotonic() + 900, {}
    while (now := unsettled()) and any(now.values()) and time.monotonic() < deadline:
        if now != last:
            say(", ".join(f"{name}: {number}" for name, number in now.items() if number))
        last = now
        time.sleep(5)
    # Cleared runs have ended again.
    _wait(lambda: not {"running", "queued"} & set(_states(bench, people.cleared)), 120)
    return not any(unsettled().values())


def _states(bench: BenchStack, run_ids: list[str]) -> list[str]:
    return [bench.request("GET", f"/dags/{EXECUTE}/dagRuns/{quote(run_id, safe='')}")["state"] for run_id in run_ids]


def count(bench: BenchStack, customers: Customers, people: People, webhook: Webhook) -> dict[str, Any]:
    """The outcomes of all requests, answers and alerts, seen from outside."""
    rows = bench.query("select decision_id, request_id, risk, state, engine, target_kind, target_id from decisions")
    decisions = {row[0]: row for row in rows}
    per_request = Counter(row[1] for row in rows)
    orders = Counter(decision_id for (decision_id,) in bench.query("select decision_id from work_orders"))
    basis = dict(bench.query("select decision_id, basis from work_orders"))
    announced = Counter(
        (key, json.loads(value)["decision_id"]) for key, value in bench.records(WORK_ORDERS.name, "idempotency-key")
    )
    done = {d for d, row in decisions.items() if row[3] == "executed"}
    risky_done = {d for d in done if decisions[d][2] == "high"}
    foreign = """
        select count(*) from decisions where state = 'executed' and not (
            target_kind = 'customer' and target_id = customer_id or target_kind = 'district' and target_id = district_id
        )
    """
    alerts = "select count(*) from alerts where source_event_id = any(:sent)"
    called = {body["source_event_id"] for bodies in webhook.received.values() for body in bodies}
    settled = {d for d, row in decisions.items() if row[3] != "awaiting_approval"}
    return {
        "requests": len(customers.requests),
        "decided": sum(1 for request in customers.requests if per_request[request]),
        "lost": sum(1 for request in customers.requests if not per_request[request])
        + len(settled - set(orders))
        + len(settled - {decision_id for _, decision_id in announced})
        + (len(customers.leaks) - bench.query(alerts, sent=customers.leaks)[0][0])
        + len(set(customers.leaks) - called),
        "twice": sum(n - 1 for n in per_request.values())
        + sum(n - 1 for n in orders.values())
        # At least once: a repeated delivery must have the same idempotency key.
        + (len({key for key, _ in announced}) - len({decision_id for _, decision_id in announced}))
        + (len(webhook.received) - len(called)),
        "executed_without_approval": len(risky_done - people.approved),
        "approved_and_not_executed": len(people.approved - done),
        "done_to_somebody_else": bench.query(foreign)[0][0],
        "second_answers_taken": people.contradictions,
        "webhook_calls": {"alerts": len(called), "without_key": webhook.without_key},
        "engines": dict(Counter(row[4] for row in rows)),
        "fallbacks": dict(
            bench.query("select fallback_reason, count(*) from decisions where fallback_reason is not null group by 1")
        ),
        "states": dict(Counter(row[3] for row in rows)),
        "bases": dict(Counter(basis.values())),
        "answers": people.summary(),
    }


def is_good(figures: dict[str, Any], rounds: int) -> bool:
    """Whether nothing was lost, repeated or executed without approval, and every fault has hit."""
    zero = ("lost", "twice", "executed_without_approval", "approved_and_not_executed", "done_to_somebody_else")
    complete = len(figures["hits"]) == 9 and all(number >= rounds for number in figures["hits"].values())
    return figures["settled"] and complete and not any(figures[name] for name in zero)
