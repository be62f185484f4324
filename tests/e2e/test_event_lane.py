"""The event lane in a real Airflow: each message has its effect once, although processes are killed.

The tests see everything from outside: Airflow through its REST API, effects in the database, Kafka through their own
clients.
"""

from __future__ import annotations

import os
import signal
import time
import uuid

import pytest

from include.streams.contracts.breaking import broken
from tests.e2e.airflow import Airflow, wait_for
from tests.e2e.lane import Lane, of
from tests.e2e.shop import BOOK_ORDERS, BOOKED, ORDERS, RETURNS, Booked, Order

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

DAG = BOOK_ORDERS.name
DAGS = (DAG, "deliver_outbox", "prepare_services")


class OrderLane(Lane):
    """The lane of the shop's orders."""

    def effects(self, *orders: Order) -> list[str]:
        """The sorted order numbers of all effects; a number that occurs twice had its effect twice."""
        wanted = [order.number for order in orders]
        statement = "select number from shop_effects where consumer = %s and number = any(%s) order by 1"
        return [number for (number,) in self.query(statement, self.consumer, wanted)]

    def announced(self, *orders: Order) -> list[Booked]:
        """The messages about these orders since the test began."""
        wanted = {order.number for order in orders}
        events = [BOOKED.parse(record.value()) for record in self.records(BOOKED.name)]
        return [event for event in events if isinstance(event, Booked) and event.number in wanted]


@pytest.fixture
def lane(whole_stack) -> OrderLane:
    return OrderLane(whole_stack.endpoints(), DAG, (ORDERS, RETURNS, BOOKED))


def order(customer: str = "c-1") -> Order:
    return Order(version=1, number=uuid.uuid4().hex, customer=customer, amount=5)


def numbers(*orders: Order) -> list[str]:
    return sorted(order.number for order in orders)


def test_messages_have_effects_within_seconds_and_runs_succeed(lane: OrderLane, airflow: Airflow):
    ordered, returned = order(), order()
    sent_at = time.monotonic()
    sent = lane.send(of(ORDERS, ordered), of(RETURNS, returned))
    wait_for(lambda: len(lane.announced(ordered, returned)) == 2, 20, "both are announced")
    assert time.monotonic() - sent_at < 15
    assert lane.effects(ordered, returned) == numbers(ordered, returned)
    assert {(one.topic, one.partition, one.offset) for one in lane.announced(ordered, returned)} == set(sent)
    runs = {run_id for _, run_id in lane.inbox(sent).values()}
    for run_id in runs:
        airflow.wait_for_success(run_id, DAG)
        assert airflow.run(run_id, DAG)["run_type"] == "asset_triggered"
    states = {task["task_id"]: task["state"] for run_id in runs for task in airflow.tasks(run_id, DAG)}
    # A single message takes one task: no mapped task is needed.
    assert states == {"claim": "success", "handle": "skipped"}


def test_a_bad_message_becomes_a_dead_letter_and_the_others_are_handled(lane: OrderLane, airflow: Airflow):
    before, after = order(), order()
    key, good = ORDERS.serialize(order())
    bad = list(broken(ORDERS, order()).items())
    messages = [(ORDERS, key, value) for _, value in bad]
    sent = lane.send(of(ORDERS, before), *messages, (ORDERS, key, good[:-2]), of(ORDERS, after))
    assert len({partition for _, partition, _ in sent}) == 1, "the messages must have consecutive offsets"
    inbox = lane.wait_for_inbox(sent)
    assert [inbox[where][0] for where in sent] == ["handled", *["dead_letter"] * (len(bad) + 1), "handled"]
    assert lane.effects(before, after) == numbers(before, after)
    letters = {int(dict(r.headers())["dlq.offset"]): r for r in lane.records(ORDERS.dead_letter_name)}
    assert sorted(letters) == [offset for _, _, offset in sent[1:-1]]
    for (reason, value), where in zip(bad, sent[1:-2], strict=True):
        letter = letters[where[2]]
        headers = dict(letter.headers())
        assert (letter.key(), letter.value()) == (key, value)
        assert (headers["dlq.reason"], headers["dlq.topic"]) == (reason.encode(), ORDERS.name.encode())
        assert headers["dlq.partition"] == str(where[1]).encode()
        assert (headers["dlq.consumer"], headers["dlq.run_id"]) == (DAG.encode(), inbox[where][1].encode())
    for run_id in {run_id for _, run_id in inbox.values()}:
        airflow.wait_for_success(run_id, DAG)


def test_a_cleared_run_gets_the_same_ranges_and_repeats_no_effect(lane: OrderLane, airflow: Airflow):
    one = order()
    sent = lane.send(of(ORDERS, one), (ORDERS, b"c-1", b"not JSON"))
    (run_id,) = {run_id for _, run_id in lane.wait_for_inbox(sent).values()}
    airflow.wait_for_success(run_id, DAG)
    before = lane.ranges(run_id), lane.inbox(sent), lane.effects(one)
    assert before[0]
    # A message that arrives in between must not become part of the cleared run.
    later = lane.send(of(ORDERS, order()))
    lane.wait_for_inbox(later)
    airflow.ask(
        "POST",
        f"/dags/{DAG}/clearTaskInstances",
        dry_run=False,
        dag_run_id=run_id,
        only_failed=False,
        reset_dag_runs=True,
    )

    def claimed_again() -> bool:
        return any(
            task["task_id"] == "claim" and task["try_number"] == 2 and task["state"] == "success"
            for task in airflow.tasks(run_id, DAG)
        )

    wait_for(claimed_again, 60, "the cleared claim has run again")
    airflow.wait_for_success(run_id, DAG)
    assert (lane.ranges(run_id), lane.inbox(sent), lane.effects(one)) == before
    assert lane.effects(one) == [one.number]
    assert len(lane.announced(one)) == 1
    assert len(lane.records(ORDERS.dead_letter_name)) == 1
    assert lane.inbox(later)[later[0]][1] != run_id


def test_a_message_sent_while_the_triggerer_is_dead_is_handled(lane: OrderLane, whole_stack):
    one = order()
    (before,) = whole_stack.pids("triggerer")
    os.kill(before, signal.SIGKILL)
    sent = lane.send(of(ORDERS, one))
    wait_for(lambda: whole_stack.pids("triggerer") not in ([], [before]), 30, "supervisord has restarted it")
    # Airflow gives a dead triggerer's triggers to another one after half a minute.
    lane.wait_for_inbox(sent, seconds=120)
    wait_for(lambda: len(lane.announced(one)) == 1, 20, "it is announced")
    assert lane.effects(one) == [one.number]


def test_each_of_many_messages_on_two_topics_is_handled_once(lane: OrderLane):
    orders = [order(f"c-{n}") for n in range(400)]
    returns = [order(f"c-{n}") for n in range(200)]
    messages = [of(ORDERS, item) for item in orders] + [of(RETURNS, item) for item in returns]
    sent = lane.send(*messages, *messages[::10])
    assert len({where[:2] for where in sent}) > 3, "the messages must be in several partitions of both topics"
    inbox = lane.wait_for_inbox(sent, seconds=60)
    outcomes = [outcome for outcome, _ in inbox.values()]
    assert outcomes.count("handled") == len(messages)
    assert outcomes.count("duplicate") == len(messages[::10])
    wait_for(lambda: lane.open_claims() == 0, 30, "no claim is open")
    all_orders = [*orders, *returns]
    wait_for(lambda: len(lane.announced(*all_orders)) == len(all_orders), 30, "every order is announced")
    assert sorted(item.number for item in lane.announced(*all_orders)) == numbers(*all_orders)
    assert lane.effects(*all_orders) == numbers(*all_orders)


def test_services_prepared_through_the_api_report_no_change(airflow: Airflow):
    dag = "prepare_services"
    run_id = f"test-{uuid.uuid4().hex[:8]}"
    airflow.ask("POST", f"/dags/{dag}/dagRuns", dag_run_id=run_id, logical_date=None)
    airflow.wait_for_success(run_id, dag)
    path = f"/dags/{dag}/dagRuns/{run_id}/taskInstances/prepare"
    assert airflow.ask("GET", f"{path}/xcomEntries/return_value")["value"] == []
    log = airflow.ask("GET", f"{path}/logs/1?full_content=true")
    assert "nothing to do: all is as this version needs it" in str(log)


def test_messages_of_a_pause_are_handled_after_the_pause(lane: OrderLane, airflow: Airflow):
    orders = [order(), order("c-2")]
    seen = lane.query("select coalesce(max(id), 0) from asset_event", database="airflow_metadata")[0][0]
    airflow.pause(DAG, True)
    try:
        sent = lane.send(*(of(ORDERS, one) for one in orders))
        # The message's event was dropped, because the Dag was paused.
        wait_for(
            lambda: lane.query("select id from asset_event where id > %s", seen, database="airflow_metadata"),
            30,
            "the trigger has fired",
        )
        assert lane.inbox(sent) == {}
    finally:
        airflow.pause(DAG, False)
    lane.wait_for_inbox(sent, seconds=90)
    assert lane.effects(*orders) == numbers(*orders)
    wait_for(lambda: len(lane.announced(*orders)) == 2, 20, "both are announced")
