"""Cleared runs with fewer clean rows than before: the flows of the hours that lost rows, on real services."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Any

import pytest
from confluent_kafka.admin import NewTopic
from pydantic import Field

from include.streams.contracts import Topic
from include.streams.kafka.reset import reset_consumer
from include.streams.lake.catalog import load_catalog
from include.streams.lake.engine import connect
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.planning import claim_landed
from include.streams.landing.tables import clean_table, create_landing_table
from include.streams.landing.validation import validate_unit
from include.water.flows.aggregation import aggregate_tables
from include.water.flows.replaced import commit, hours_replaced_by
from include.water.flows.tables import METER_HOURS
from include.water.topics import MeterReading
from tests.contracts import change_contract
from tests.integration.kafka.conftest import admin, operations, send, wait_for_topics
from tests.integration.landing.conftest import finish
from tests.integration.landing.test_generations import a_later_leader_knows_nothing_of_it, a_new_landing_table
from tests.integration.landing.test_run import land
from tests.integration.water.flows.lake import Lake, at, make_lake
from tests.unit.water.flows.reference import Reading

__all__ = ["admin", "operations", "send"]

pytestmark = pytest.mark.integration

KEPT = [Reading("M-000004", "harbour", at(7, hour), 1_000 + 100 * hour) for hour in (9, 10, 11)]
# Far from the run's other readings: between two readings of the run before, and alone on its day.
REFUSED = [Reading("M-000004", "harbour", at(7, 10) + timedelta(minutes=30), 2_000_000)]
REFUSED += [Reading("M-000006", "valley", at(10, 5), 3_000_000)]
STAYS = [Reading("M-000008", "harbour", at(12, 5), 5_000)]


class Stricter(MeterReading):
    litres_total: Annotated[int, Field(ge=0, le=1_000_000)]


@pytest.fixture
def lane(landing_services, operations, admin) -> LandingConsumer:
    name = f"meters.{uuid.uuid4().hex[:8]}"
    topic = Topic(name, MeterReading, "meter_id", 1, timedelta(days=1), landed=True, event_time="read_at")
    new = [NewTopic(topic.name, 1, 1), NewTopic(topic.dead_letter_name, 1, 1)]
    for future in admin.create_topics(new).values():
        future.result(30)
    wait_for_topics(admin, topic.name, topic.dead_letter_name)
    create_landing_table(topic)
    return LandingConsumer(name=f"lane-{name}", topic=topic, min_messages_per_unit=1, landing_grace=timedelta())


@pytest.fixture
def arrive(lane, send) -> Callable[[list[Reading]], None]:
    """Send readings and wait until they have landed."""

    def arrive(readings: list[Reading]) -> None:
        values = values_of(readings)
        land(lane.topic, 0, send(lane.topic, *values)[0], *values)

    return arrive


def values_of(readings: list[Reading]) -> list[bytes]:
    return [
        MeterReading(
            version=1, meter_id=r.meter_id, district_id=r.district_id, read_at=r.read_at, litres_total=r.litres
        )
        .model_dump_json()
        .encode()
        for r in readings
    ]


def to_clean(lane: LandingConsumer, run_id: str) -> dict[str, Any]:
    """Run the lane up to the commit to the clean table; returns the summary."""
    units = claim_landed(lane, run_id)
    summary = commit(lane, [validate_unit(lane, unit, run_id) for unit in units], run_id)
    finish(units)
    return summary


def flows(lane: LandingConsumer, lake: Lake, summary: dict[str, Any]) -> dict[str, Any]:
    readings = load_catalog().load_table(clean_table(lane.topic))
    with connect() as connection:
        return aggregate_tables(
            connection, readings, lake.flow_tables, summary["ranges"], hours_replaced_by(summary["claim_id"])
        )


def test_hours_that_lost_their_readings_lose_their_flows(lane, arrive):
    arrive(KEPT)
    first = to_clean(lane, "run-1")
    arrive([*STAYS, *REFUSED])
    second = to_clean(lane, "run-2")
    assert hours_replaced_by(second["claim_id"]) == [], "nothing was replaced yet"
    lake, wanted = (make_lake(f"flows_{uuid.uuid4().hex[:8]}") for _ in range(2))
    # Another run uses these readings too, before their own run has computed flows.
    flows(lane, lake, first)
    litres = {row["hour"]: row["litres"] for row in lake.rows(METER_HOURS).to_pylist()}
    assert litres[at(7, 10)] is None, "the counter falls: a flow was computed from readings that are removed now"
    flows(lane, lake, second)

    change_contract(lane.topic, Stricter)
    assert to_clean(lane, "run-2")["clean"] == 1
    # Killed after its commit, the task repeats the commit, and finds only the remaining rows.
    again = to_clean(lane, "run-2")
    assert (again["clean"], again["dead_lettered"]) == (1, 2)
    assert hours_replaced_by(again["claim_id"]) == [at(7, 10), at(10, 5), at(12, 5)]
    changed = flows(lane, lake, again)
    wanted.aggregate(wanted.append([*KEPT, *STAYS]))
    assert lake.everything() == wanted.everything()
    assert datetime.fromisoformat(changed["hours"][0]) <= at(7, 10), "the asset's event names them too"


def test_a_run_of_a_new_log_keeps_the_rows_of_the_old_log(lane, arrive):
    arrive(KEPT)
    to_clean(lane, "run-1")
    a_new_landing_table(lane.topic)
    a_later_leader_knows_nothing_of_it(lane)
    reset_consumer(lane.name, lane.topic.name)
    land(lane.topic, 0, 0, *values_of(STAYS))
    second = to_clean(lane, "run-2")
    assert (second["clean"], second["ranges"][0]["start"]) == (1, 0)
    assert hours_replaced_by(second["claim_id"]) == []
