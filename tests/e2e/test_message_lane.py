"""One Dag run per message in a real Airflow: each message has a run of its own, also a message sent during a pause.

The tests see everything from outside, like `test_event_lane.py`.
"""

from __future__ import annotations

import uuid

import pytest

from tests.e2e.airflow import Airflow, wait_for
from tests.e2e.lane import Coordinates, Lane, of
from tests.e2e.shop import PACK_PARCELS, PARCELS, Order

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

FAN_OUT, WORKER, MAINTAIN = "e2e_fan_out_parcels", "e2e_pack_parcel", "e2e_maintain_parcels"
DAGS = (FAN_OUT, WORKER, MAINTAIN)


class ParcelLane(Lane):
    """The lane of the shop's parcels."""

    def ship(self, count: int) -> list[Coordinates]:
        parcels = [Order(version=1, number=uuid.uuid4().hex, customer="c-1", amount=1) for _ in range(count)]
        return self.send(*(of(PARCELS, one) for one in parcels))

    def handled(self, sent: list[Coordinates]) -> int:
        return sum(outcome == "handled" for outcome, _ in self.inbox(sent).values())

    def effects(self, sent: list[Coordinates]) -> list[Coordinates]:
        statement = 'select topic, "partition", "offset" from shop_effects where consumer = %s order by 2, 3'
        return [row for row in self.query(statement, self.consumer) if tuple(row) in set(sent)]  # type: ignore[misc]

    def emitted(self, sent: list[Coordinates]) -> int:
        """How many of the messages are in claims whose keys were emitted; each message may have its own claim."""
        statement = """
            select count(*) from claims join claim_ranges on claim_id = id
            where consumer = %s and emitted_at is not null
            and topic = %s and partition = %s and start_offset <= %s and end_offset > %s
        """
        return sum(self.query(statement, self.consumer, *where, where[2])[0][0] for where in sent)


@pytest.fixture
def lane(whole_stack) -> ParcelLane:
    return ParcelLane(whole_stack.endpoints(), PACK_PARCELS.name, (PARCELS,))


def key(where: Coordinates) -> str:
    return "-".join(map(str, where))


def runs(airflow: Airflow, sent: list[Coordinates]) -> dict[str, list[str]]:
    """{partition key: states of its runs} of the messages."""
    states: dict[str, list[str]] = {key(where): [] for where in sent}
    for run in airflow.ask("GET", f"/dags/{WORKER}/dagRuns?limit=200&order_by=-id")["dag_runs"]:
        if run["partition_key"] in states:
            states[run["partition_key"]].append(run["state"])
    return states


def test_every_message_has_one_run_that_its_partition_key_finds(airflow: Airflow, lane: ParcelLane):
    sent = lane.ship(2)
    wait_for(lambda: lane.handled(sent) == 2, 90, "both are handled")
    wait_for(
        lambda: runs(airflow, sent) == {key(where): ["success"] for where in sent},
        60,
        "each has one run that succeeded",
    )
    assert lane.effects(sent) == sorted(sent)


def test_a_message_that_breaks_its_contract_starts_no_run(airflow: Airflow, lane: ParcelLane):
    sent = lane.send((PARCELS, b"p", b"not a parcel"))
    good = lane.ship(1)
    wait_for(lambda: lane.handled(good) == 1, 90, "the good one is handled")
    assert runs(airflow, sent) == {key(sent[0]): []}
    assert [outcome for outcome, _ in lane.inbox(sent).values()] == ["dead_letter"]


def test_a_paused_dag_gets_every_missed_message_afterwards(airflow: Airflow, lane: ParcelLane):
    airflow.pause(WORKER, True)
    try:
        sent = lane.ship(3)
        wait_for(lambda: lane.emitted(sent) == 3, 60, "their keys are emitted")
        fan_outs = f"/dags/{FAN_OUT}/dagRuns?state=running&state=queued"
        wait_for(lambda: not airflow.ask("GET", fan_outs)["dag_runs"], 60, "the fan-out has ended")
    finally:
        airflow.pause(WORKER, False)
    assert lane.handled(sent) == 0
    # `maintain` would find the lost keys after an hour. A run of an earlier message may not have ended before the
    # pause, and a busy worker gets more time than an idle one.
    lane.execute("update claims set emitted_at = emitted_at - interval '1 hour' where closed_at is null")
    airflow.ask("POST", f"/dags/{MAINTAIN}/dagRuns", logical_date=None)
    wait_for(lambda: lane.handled(sent) == 3, 120, "all three are handled")
    assert lane.effects(sent) == sorted(sent)
