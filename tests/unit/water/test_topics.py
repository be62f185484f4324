"""The utility's contracts: derived event ids, and a light import."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from include.streams.contracts import Contract
from include.water.sites import DISTRICTS, SITES
from include.water.topics import (
    LEAKS_DETECTED,
    METER_READINGS,
    SEISMIC_EVENTS,
    TOPICS,
    Action,
    AlertKind,
    AlertRaised,
    Channel,
    LeakDetected,
    MeterReading,
    OrderBasis,
    ReviewStatus,
    SeismicEvent,
    ServiceRequest,
    Severity,
    TargetKind,
    WorkOrder,
)

NOW = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)
EXAMPLES: dict[type[Contract], dict[str, Any]] = {
    ServiceRequest: {
        "request_id": "SR-00000001",
        "received_at": NOW,
        "channel": Channel.app,
        "customer_id": "C-000001",
        "district_id": "harbour",
        "address": "1 Quay Street",
        "subject": "No water",
        "text": "Since this morning.\nPlease help.",
    },
    MeterReading: {"meter_id": "M-000001", "district_id": "harbour", "read_at": NOW, "litres_total": 12},
    SeismicEvent: {
        "seismic_id": "us7000abcd",
        "updated_at": NOW,
        "occurred_at": NOW,
        "magnitude": 4.4,
        "magnitude_type": "mw",
        "depth_km": 8.0,
        "latitude": 37.8,
        "longitude": -122.2,
        "place": "3 km E of Oakland, CA",
        "status": ReviewStatus.automatic,
        "kind": "earthquake",
    },
    LeakDetected: {
        "leak_key": "harbour/2026-11-21/1",
        "district_id": "harbour",
        "night": date(2026, 11, 21),
        "litres_per_hour": 900.0,
        "confidence": 0.9,
        "model_version": "2026-11-01",
        "detected_at": NOW,
    },
    AlertRaised: {
        "alert_id": "leak:harbour/2026-11-21/1",
        "revision": 1,
        "kind": AlertKind.leak,
        "severity": Severity.major,
        "district_id": "harbour",
        "site_id": None,
        "title": "A leak",
        "raised_at": NOW,
        "source_event_id": "harbour/2026-11-21/1",
        "source_topic": "leaks.detected",
        "source_partition": 0,
        "source_offset": 17,
    },
    WorkOrder: {
        "work_order_id": "WO-SR-00000001-0123456789ab",
        "decision_id": "SR-00000001-0123456789ab",
        "request_id": "SR-00000001",
        "action": Action.dispatch_crew,
        "target_kind": TargetKind.district,
        "target_id": "harbour",
        "district_id": "harbour",
        "severity": Severity.major,
        "basis": OrderBasis.low_risk,
        "proposed_action": Action.dispatch_crew,
        "ordered_at": NOW,
    },
}


def example(contract: type[Contract], **changes: Any) -> Any:
    return contract(**{"version": 1, **EXAMPLES[contract], **changes})


def test_every_topic_serializes_and_parses_its_example():
    assert {topic.contract for topic in TOPICS} == set(EXAMPLES)
    for topic in TOPICS:
        event = example(topic.contract)
        _, value = topic.serialize(event)
        assert topic.parse(value) == event
        assert topic.description


def test_meters_use_many_partitions_and_a_quakes_revisions_one():
    assert METER_READINGS.partitions >= 4
    first, second = (
        example(SeismicEvent, updated_at=NOW),
        example(SeismicEvent, updated_at=NOW + timedelta(minutes=1)),
    )
    assert SEISMIC_EVENTS.serialize(first)[0] == SEISMIC_EVENTS.serialize(second)[0]


def test_a_revision_of_a_quake_is_a_new_event_and_the_same_revision_is_not():
    first = example(SeismicEvent)
    revised = example(SeismicEvent, updated_at=NOW + timedelta(milliseconds=1), magnitude=4.6)
    assert first.event_id == "us7000abcd@2026-11-22T15:00:00Z"
    assert revised.event_id != first.event_id
    assert example(SeismicEvent).event_id == first.event_id


def test_a_leak_found_again_by_another_model_is_the_same_event():
    first = example(LeakDetected)
    again = example(LeakDetected, model_version="2026-12-01", litres_per_hour=901.0, detected_at=NOW)
    assert first.event_id == again.event_id
    assert LeakDetected.key_for("harbour", date(2026, 11, 21)) == first.event_id


@given(st.sampled_from(list(DISTRICTS)), st.dates(date(2000, 1, 1), date(2100, 1, 1)), st.integers(1, 10**6))
def test_every_derived_key_fits_the_contract(district: str, night: date, number: int):
    key = LeakDetected.key_for(district, night, number)
    assert LEAKS_DETECTED.serialize(example(LeakDetected, leak_key=key))
    assert example(AlertRaised, alert_id=f"leak:{key}", source_event_id=key)


def test_event_ids_depend_on_the_moment_not_on_the_time_zone():
    template = b'{"version":1,"meter_id":"M-000001","district_id":"harbour","read_at":"%s","litres_total":1}'
    ids = [
        METER_READINGS.parse(template % moment).event_id
        for moment in (
            b"2026-11-22T15:00:00Z",
            b"2026-11-22T16:00:00+01:00",
            b"2026-11-22T15:00:00.000Z",
            b"2026-11-22T15:00:00.000001Z",
        )
    ]
    assert ids[0] == ids[1] == ids[2] == "M-000001@2026-11-22T15:00:00Z"
    assert ids[3] == "M-000001@2026-11-22T15:00:00.000001Z"


def test_severities_have_an_order():
    assert sorted(Severity, key=lambda severity: severity.rank) == [
        Severity.minor,
        Severity.major,
        Severity.critical,
    ]


def test_every_site_lies_in_a_district_and_every_id_fits_the_contracts():
    for site in SITES.values():
        assert site.district_id in DISTRICTS
        assert example(AlertRaised, site_id=site.site_id, district_id=site.district_id)
    for district in DISTRICTS.values():
        assert example(MeterReading, meter_id=district.inlet_meter_id, district_id=district.district_id)
    assert len({district.inlet_meter_id for district in DISTRICTS.values()}) == len(DISTRICTS)


def test_importing_the_topics_loads_only_pydantic():
    code = "import sys, include.water.topics; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "pydantic" in loaded
    assert not loaded & {"airflow", "sqlalchemy", "confluent_kafka", "requests", "psycopg", "alembic"}
