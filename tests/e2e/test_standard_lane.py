"""The standard lane in a real Airflow: scans in Kafka become clean rows, and a stopped run stops the lane.

The tests see everything from outside: Airflow through its REST API, tables through their own catalog.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.airflow import Airflow, wait_for
from tests.e2e.shop import COUNT_SCANS, SCANS, Scan
from tests.e2e.standard_lane import LANE_SECONDS, StandardLane

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

DAG = COUNT_SCANS.name
DAGS = (DAG,)
START = datetime(2026, 3, 2, tzinfo=UTC)
# A count for which the suite stops a run.
TOO_MANY = 2_000_000


@pytest.fixture(scope="module")
def lane(whole_stack, airflow: Airflow) -> StandardLane:
    return StandardLane(whole_stack, airflow, COUNT_SCANS, "e2e_scans_counted", "wait_for_scans")


def scan(items: int = 1) -> tuple[bytes, bytes]:
    at = START + timedelta(minutes=items % 600)
    return SCANS.serialize(Scan(version=1, scan_id=uuid.uuid4().hex, scanned_at=at, items=items))


def scan_ids(lane: StandardLane) -> list[str]:
    return lane.clean()["event_id"].to_pylist()


def test_each_scan_becomes_one_clean_row_and_counts_balance(lane: StandardLane):
    good = [scan(n) for n in range(500)]
    bad: list[tuple[bytes, bytes | None]] = [(b"s", b"not JSON"), (b"s", None), (b"s", b'{"version":2}')]
    before, published = lane.offsets(), len(lane.published())
    sent = [*good, *good[::10], *bad]
    lane.send(*sent)
    wait_for(lambda: lane.offsets() - before >= len(sent), LANE_SECONDS, "every message is in a finished run")
    assert sorted(scan_ids(lane)) == sorted(key.decode() for key, _ in good)
    # A run closes its claim before its asset event is stored.
    publishes = lambda: sum(event["landed"] for event in lane.published()[published:]) == len(sent)  # noqa: E731
    wait_for(publishes, LANE_SECONDS, "every run has an asset event with its counts")
    events = lane.published()[published:]
    total = {name: sum(event[name] for event in events) for name in ("landed", "clean", "dead_lettered", "duplicates")}
    assert total == {
        "landed": len(sent),
        "clean": len(good),
        "dead_lettered": len(bad),
        "duplicates": len(good[::10]),
    }


def test_a_failed_suite_stops_the_lane_until_its_run_is_cleared(lane: StandardLane):
    """Messages that arrive in the meantime wait, and the cleared run loses none."""
    before, odd, later = lane.offsets(), [scan(TOO_MANY + n) for n in range(3)], [scan() for _ in range(3)]
    lane.send_as_one_batch(*odd)
    failed = lane.wait_for_failed_run()
    # Read here: a run closes its claim before its asset event is stored, and the next run starts after both.
    published = len(lane.published())
    states = lane.states(failed)
    assert (states["check_sets"], states["publish"]) == ("failed", "upstream_failed")
    wait_for(lambda: lane.other_runs_wait(failed), LANE_SECONDS, "the next run waits in the triggerer")
    landed = lane.landed()
    lane.send(*later)
    wait_for(lambda: lane.landed() == landed + len(later), LANE_SECONDS, "the later messages have landed")
    assert lane.offsets() == before
    assert lane.open_run() == failed, "nothing new is claimed while a failed run has its claim"
    lane.accept_and_clear(failed)
    wait_for(lambda: lane.offsets() - before == len(odd) + len(later), LANE_SECONDS, "the lane continues")
    wait_for(
        lambda: sum(event["clean"] for event in lane.published()[published:]) == len(odd) + len(later),
        LANE_SECONDS,
        "both runs have an asset event with their counts",
    )
    assert lane.open_run() is None
    assert {key.decode() for key, _ in (*odd, *later)} <= set(scan_ids(lane))
