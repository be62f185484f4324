"""The standard lane in a real Airflow: readings in Kafka become hourly flows, and a stopped run stops the lane.

`tests/e2e/test_standard_lane.py` tests the lane without the example's suite and aggregation.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from include.water.consumers import AGGREGATE_METER_READINGS
from include.water.simulators.meters import Faults, Readings
from include.water.simulators.network import Network
from include.water.topics import METER_READINGS, MeterReading
from tests.e2e.airflow import Airflow, wait_for
from tests.e2e.standard_lane import LANE_SECONDS, StandardLane

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

DAG = AGGREGATE_METER_READINGS.name
DAGS = (DAG,)
START = datetime(2026, 3, 2, tzinfo=UTC)
# Meters with three readings each, whose counters all fall, so that the suite stops the run.
FALLING_METERS = 50
FALLING = 3 * FALLING_METERS


@pytest.fixture(scope="module")
def lane(whole_stack, airflow: Airflow) -> StandardLane:
    return StandardLane(whole_stack, airflow, AGGREGATE_METER_READINGS, "hourly_flows", "wait_for_readings")


def test_readings_become_hourly_flows_and_counts_balance(lane: StandardLane):
    readings = Readings(
        Network(seed=5), START, START + timedelta(hours=8), faults=Faults(bad=1, duplicates=0.02, late_hours=3)
    )
    messages = list(readings)
    before, published = lane.offsets(), len(lane.published())
    lane.send(*messages)
    wait_for(lambda: lane.offsets() - before >= len(messages), LANE_SECONDS, "every message is in a finished run")

    sent = {event.event_id for event in _events(messages)}
    clean = lane.clean()
    assert sorted(clean["event_id"].to_pylist()) == sorted(sent)
    good = len(_events(messages))
    # A run closes its claim before its asset event is stored.
    publishes = lambda: sum(event["landed"] for event in lane.published()[published:]) == len(messages)  # noqa: E731
    wait_for(publishes, LANE_SECONDS, "every run has an asset event with its counts")
    events = lane.published()[published:]
    total = {name: sum(event[name] for event in events) for name in ("landed", "clean", "dead_lettered", "duplicates")}
    assert total == {
        "landed": len(messages),
        "clean": len(sent),
        "dead_lettered": len(messages) - good,
        "duplicates": good - len(sent),
    }
    hours = lane.table("water.meter_hours")
    known = [row for row in hours.to_pylist() if row["litres"] is not None]
    assert len({row["meter_id"] for row in known}) > 0.9 * len(Network(seed=5).meters)
    assert {row["hour"] for row in known} >= {START + timedelta(hours=n) for n in range(1, 6)}


def test_a_failed_suite_stops_the_lane_until_its_run_is_cleared(lane: StandardLane):
    """Readings that arrive in the meantime wait, and the cleared run loses none."""
    before, at = lane.offsets(), START + timedelta(days=5)
    failed = _fail_a_run(lane, 100, at)
    # Read here: a run closes its claim before its asset event is stored, and the next run starts after both.
    published = len(lane.published())
    states = lane.states(failed)
    assert states["check_sets"] == "failed"
    assert states["aggregate"] == states["publish"] == "upstream_failed"

    wait_for(lambda: lane.other_runs_wait(failed), LANE_SECONDS, "the next run waits in the triggerer")
    later = [_reading("M-000002", at + timedelta(minutes=n), 20_000_000 + n) for n in range(3)]
    landed = lane.landed()
    lane.send(*later)
    wait_for(lambda: lane.landed() == landed + len(later), LANE_SECONDS, "the later readings have landed")
    assert lane.offsets() == before
    assert lane.open_run() == failed, "nothing new is claimed while a failed run has its claim"
    lane.accept_and_clear(failed)
    wait_for(lambda: lane.offsets() - before == FALLING + len(later), LANE_SECONDS, "the lane continues")
    wait_for(
        lambda: sum(event["clean"] for event in lane.published()[published:]) == FALLING + len(later),
        LANE_SECONDS,
        "both runs have an asset event with their counts",
    )
    assert lane.open_run() is None
    assert _readings_since(lane, at).total() == FALLING + len(later)


def _fail_a_run(lane: StandardLane, first_meter: int, at: datetime) -> str:
    """Send readings of many meters with falling counters, each valid by its contract; returns the failed run."""
    # One batch: two commits of the sink could become two runs, with too few meters for the suite's rules.
    lane.send_as_one_batch(
        *(
            _reading(f"M-{first_meter + meter:06d}", at + timedelta(minutes=20 * n), 10_000_000 - 1_000 * n)
            for meter in range(FALLING_METERS)
            for n in range(3)
        )
    )
    return lane.wait_for_failed_run()


def _readings_since(lane: StandardLane, moment: datetime) -> Counter[str]:
    """{meter: clean readings from then on}"""
    rows = lane.clean().to_pylist()
    return Counter(row["meter_id"] for row in rows if row["read_at"] >= moment)


def _reading(meter_id: str, read_at: datetime, litres: int) -> tuple[bytes, bytes]:
    event = MeterReading(version=1, meter_id=meter_id, district_id="harbour", read_at=read_at, litres_total=litres)
    return METER_READINGS.serialize(event)


def _events(messages: list[tuple[bytes, bytes | None]]) -> list[MeterReading]:
    """The events of the messages that keep their contract."""
    from include.streams.contracts import ContractViolation

    events = []
    for _, value in messages:
        try:
            events.append(METER_READINGS.parse(value))
        except ContractViolation:
            continue
    return events  # type: ignore[return-value]
