"""The example's event lane in a real Airflow: a leak or an earthquake in Kafka becomes an alert.

`tests/e2e/test_event_lane.py` tests the lane while processes are killed.
"""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime

import pytest

from include.streams.contracts import Contract
from include.water.consumers import RAISE_ALERTS
from include.water.sites import SITES
from include.water.topics import ALERTS_RAISED, LEAKS_DETECTED, SEISMIC_EVENTS, AlertRaised, LeakDetected, SeismicEvent
from tests.e2e.airflow import Airflow, wait_for
from tests.e2e.lane import Lane, of
from tests.unit.water.test_topics import example

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

DAG = RAISE_ALERTS.name
DAGS = (DAG, "deliver_outbox")
DAM = SITES["dam-upper"]


class AlertLane(Lane):
    """The lane of the alerts."""

    def alerts(self, *events: Contract) -> list[tuple[str, str, int]]:
        """(event id, severity, revision) of the alerts that these events raised, in the order of their event ids."""
        statement = (
            "select source_event_id, severity, revision from alerts where source_event_id = any(%s) order by 1, 3"
        )
        return [(str(a), str(b), int(c)) for a, b, c in self.query(statement, [event.event_id for event in events])]

    def announced(self, *events: Contract) -> list[AlertRaised]:
        """The messages on alerts.raised about these events, since the test began."""
        wanted = {event.event_id for event in events}
        raised = [ALERTS_RAISED.parse(record.value()) for record in self.records(ALERTS_RAISED.name)]
        return [alert for alert in raised if isinstance(alert, AlertRaised) and alert.source_event_id in wanted]


@pytest.fixture
def lane(whole_stack) -> AlertLane:
    return AlertLane(whole_stack.endpoints(), DAG, (LEAKS_DETECTED, SEISMIC_EVENTS, ALERTS_RAISED))


def leak(district: str = "harbour", litres_per_hour: float = 12_000.0) -> LeakDetected:
    """A leak that is a critical alert."""
    event = example(
        LeakDetected,
        leak_key=f"{district}/test/{uuid.uuid4().hex[:12]}",
        district_id=district,
        litres_per_hour=litres_per_hour,
        confidence=0.9,
    )
    assert isinstance(event, LeakDetected)
    return event


def quake(magnitude: float = 6.0) -> SeismicEvent:
    """An earthquake below the dam."""
    event = example(
        SeismicEvent,
        seismic_id=f"test{uuid.uuid4().hex[:12]}",
        updated_at=datetime.now(UTC),
        magnitude=magnitude,
        latitude=DAM.latitude,
        longitude=DAM.longitude,
        depth_km=0.0,
    )
    assert isinstance(event, SeismicEvent)
    return event


def test_a_leak_and_a_quake_become_alerts_within_seconds(lane: AlertLane, airflow: Airflow):
    a_leak, a_quake = leak(), quake()
    sent_at = time.monotonic()
    sent = lane.send(of(LEAKS_DETECTED, a_leak), of(SEISMIC_EVENTS, a_quake))
    wait_for(lambda: len(lane.announced(a_leak, a_quake)) == 2, 20, "both alerts are announced")
    assert time.monotonic() - sent_at < 15
    assert sorted(lane.alerts(a_leak, a_quake)) == sorted([(e.event_id, "critical", 1) for e in (a_leak, a_quake)])
    for announced in lane.announced(a_leak, a_quake):
        assert (announced.revision, announced.severity) == (1, "critical")
        assert (announced.source_topic, announced.source_partition, announced.source_offset) in sent
    runs = {run_id for _, run_id in lane.inbox(sent).values()}
    for run_id in runs:
        airflow.wait_for_success(run_id, DAG)
        assert airflow.run(run_id, DAG)["run_type"] == "asset_triggered"
    states = {task["task_id"]: task["state"] for run_id in runs for task in airflow.tasks(run_id, DAG)}
    # A single message takes one task: no mapped task is needed.
    assert states == {"claim": "success", "handle": "skipped"}
