"""The model's tools on a real database: they find only data of the request's customer, and never the request itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, text

from include.streams.inference.model import ChatModel, ModelSettings
from include.streams.operations.database import begin
from include.streams.operations.migrate import upgrade
from include.water.tables import alerts, decisions
from include.water.topics import ServiceRequest, Severity
from include.water.triage import tools
from include.water.triage.engine import propose_with
from include.water.triage.tools import earlier_requests, nearby_alerts
from tests.integration.inference.endpoint import Endpoint, calls, submits
from tests.unit.water.test_topics import example

pytestmark = pytest.mark.integration

NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def database(services) -> Iterator[None]:
    upgrade()
    clear()
    yield
    clear()


def clear() -> None:
    with begin() as connection:
        # Work orders of other tests refer to their decisions.
        connection.execute(text("delete from work_orders"))
        connection.execute(delete(decisions))
        connection.execute(delete(alerts))


def request(**changes: Any) -> ServiceRequest:
    given = {"request_id": "SR-00000001", "customer_id": "C-000001", "district_id": "harbour", "address": None}
    return example(ServiceRequest, **{**given, **changes})


def decided(number: int, **changes: Any) -> str:
    row = {
        "decision_id": f"SR-{number:08d}-abcdefabcdef",
        "request_id": f"SR-{number:08d}",
        "customer_id": "C-000001",
        "category": "water_quality",
        "severity": "major",
        "severity_rank": 1,
        "summary": "Brown water.",
        "action": "schedule_inspection",
        "target_kind": "customer",
        "target_id": "C-000001",
        "evidence": [],
        "risk": "low",
        "proposal_hash": "x",
        "policy_version": "1",
        "state": "executed",
        "engine": "offline",
        "tool_calls": [],
        "usage": {},
        "explanation": {},
        "source_topic": "service.requests",
        "source_partition": 0,
        "source_offset": number,
        "decided_at": NOW - timedelta(hours=number),
        **changes,
    }
    with begin() as connection:
        connection.execute(insert(decisions).values(row))
    return row["decision_id"]


def raised(alert_id: str, severity: Severity = Severity.minor, **changes: Any) -> str:
    row = {
        "alert_id": alert_id,
        "revision": 1,
        "kind": "leak",
        "severity": severity.value,
        "severity_rank": severity.rank,
        "district_id": "harbour",
        "title": "Leak",
        "source_event_id": "x",
        "source_topic": "leaks.detected",
        "source_partition": 0,
        "source_offset": 1,
        **changes,
    }
    with begin() as connection:
        connection.execute(insert(alerts).values(row))
    return alert_id


def test_earlier_requests_are_of_the_same_customer_newest_first():
    decided(1)
    older, newer = decided(30), decided(20)
    decided(3, customer_id="C-000002")
    decided(4, decided_at=NOW - timedelta(days=91))
    requests = earlier_requests(request())
    assert requests.ids == (newer, older)
    assert [row["decision_id"] for row in requests.content] == [newer, older]


def test_alerts_are_of_the_district_most_severe_first():
    small, large = raised("leak:a"), raised("leak:b", Severity.critical)
    raised("leak:c", district_id="valley")
    raised("leak:d", updated_at=NOW - timedelta(days=8))
    assert nearby_alerts(request()).ids == (large, small)
    assert nearby_alerts(request(district_id="atlantis")).ids == ()
    assert nearby_alerts(request(district_id=None)).ids == ()


def test_the_number_of_results_is_limited():
    for number in range(30):
        raised(f"leak:{number}")
    assert len(nearby_alerts(request()).ids) == 10


def test_titles_and_summaries_are_cleaned_and_redacted():
    raised("leak:a", title="Call jane@example.com\u202e now")
    decided(2, summary="Phone +44 20 7946 0958")
    assert nearby_alerts(request()).content[0]["title"] == "Call [email] now"
    assert earlier_requests(request()).content[0]["summary"] == "Phone [phone]"


def test_the_models_evidence_is_accepted_and_lookups_change_nothing():
    leak = raised("leak:harbour/2026-11-21/1", Severity.major)
    answer = {
        "category": "low_pressure",
        "severity": "major",
        "summary": "A leak explains it.",
        "action": "schedule_inspection",
        "target": {"kind": "district", "id": "harbour"},
        "evidence": [leak],
    }
    endpoint = Endpoint(calls(("nearby_alerts", {}), ("earlier_requests", {})), submits(answer))
    with endpoint.serve() as url:
        model = ChatModel(url, "", ModelSettings(model="m"))
        proposal = propose_with(model, request(subject="Pressure", text="Hardly any pressure in our street."))
    assert proposal.engine == "llm"
    assert proposal.decision.evidence == (leak,)
    results = [json.loads(m["content"]) for m in endpoint.conversation if m["role"] == "tool"]
    assert results[0][0]["alert_id"] == leak
    assert results[1] == []
    with begin() as connection:
        assert connection.scalar(select(func.count()).select_from(decisions)) == 0


def test_without_a_database_the_offline_engine_proposes(monkeypatch):
    def away(*_: object) -> None:
        raise ConnectionError("postgresql://operations:secret@db")

    monkeypatch.setattr(tools, "_found", away)
    endpoint = Endpoint(calls(("nearby_alerts", {})))
    with endpoint.serve() as url:
        model = ChatModel(url, "", ModelSettings(model="m"))
        proposal = propose_with(model, request(subject="Bill", text="My bill is wrong."))
    assert (proposal.engine, proposal.fallback_reason) == ("offline", "tool nearby_alerts failed")
    assert "secret" not in json.dumps(proposal.tool_calls)
