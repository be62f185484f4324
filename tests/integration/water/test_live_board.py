"""The live board's tiles and content, on a real database."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, func, insert, text, update
from sqlalchemy.exc import DBAPIError

from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import open_alarm
from include.streams.operations.database import begin
from include.streams.operations.migrate import upgrade
from include.streams.pages.reading import read_only
from include.water.dashboards.board import read_board
from include.water.dashboards.events import ELSEWHERE
from include.water.dashboards.tiles import MAX_ALERTS, OPEN_FOR, TILES, behind, refresh
from include.water.sites import DISTRICTS
from include.water.tables import alerts, board_tiles, decisions

pytestmark = pytest.mark.integration

RANKS = {"minor": 0, "major": 1, "critical": 2}


@pytest.fixture(scope="module", autouse=True)
def migrated(services) -> None:
    upgrade()


@pytest.fixture
def connection():
    """A transaction with empty tables, rolled back at the end."""
    with begin() as connection:
        for table in ("board_tiles", "alerts", "work_orders", "decisions", "alarms"):
            connection.execute(text(f"delete from {table}"))
        yield connection
        connection.rollback()


def raise_alert(connection: Connection, number: int, district: str | None = "harbour", **changes: Any) -> str:
    severity = changes.get("severity", "minor")
    values = {
        "alert_id": f"leak:{number}",
        "revision": 1,
        "kind": "leak",
        "severity": severity,
        "severity_rank": RANKS[severity],
        "district_id": district,
        "title": f"Leak {number}",
        "source_event_id": "e",
        "source_topic": "leaks.detected",
        "source_partition": 0,
        "source_offset": number,
        **changes,
    }
    connection.execute(insert(alerts).values(**values))
    return values["alert_id"]


def decide(connection: Connection, number: int, **changes: Any) -> None:
    values = {
        "decision_id": f"d{number}",
        "request_id": f"SR-{number:08d}",
        "customer_id": "C-000042",
        "category": "burst_pipe",
        "severity": "minor",
        "severity_rank": RANKS[changes.get("severity", "minor")],
        "summary": "A pipe has burst.",
        "action": "open_ticket",
        "target_kind": "customer",
        "target_id": "C-000042",
        "evidence": [],
        "risk": "low",
        "proposal_hash": "h",
        "policy_version": "1",
        "state": "executed",
        "engine": "offline",
        "tool_calls": [],
        "usage": {},
        "explanation": {},
        "source_topic": "service.requests",
        "source_partition": 0,
        "source_offset": number,
        **changes,
    }
    connection.execute(insert(decisions).values(**values))


def awaiting(connection: Connection, number: int, minutes: int, severity: str = "minor") -> None:
    decide(
        connection,
        number,
        severity=severity,
        risk="high",
        state="awaiting_approval",
        deadline_at=func.now() + timedelta(minutes=minutes),
    )


def tile(connection: Connection, name: str = "harbour") -> dict[str, Any]:
    return next(tile for tile in read_board(connection)["tiles"] if tile["id"] == name)


def ids(connection: Connection, name: str = "harbour") -> list[str]:
    return [alert["id"] for alert in tile(connection, name)["alerts"]]


def test_a_tile_lists_the_most_severe_and_newest_alerts_first(connection):
    raise_alert(connection, 1)
    raise_alert(connection, 2, severity="critical", updated_at=func.now() - timedelta(hours=2))
    raise_alert(connection, 3, severity="critical", updated_at=func.now() - timedelta(hours=1))
    raise_alert(connection, 4, district="valley")
    refresh(connection)
    assert ids(connection) == ["leak:3", "leak:2", "leak:1"]
    assert tile(connection)["counts"] == {"minor": 1, "major": 0, "critical": 2}
    assert ids(connection, "valley") == ["leak:4"]


def test_an_alert_is_open_for_a_day_after_its_last_rise(connection):
    before = func.now() - OPEN_FOR
    raise_alert(connection, 1, raised_at=before, updated_at=before)
    raise_alert(connection, 2, raised_at=before, updated_at=before + timedelta(minutes=1))
    refresh(connection)
    assert ids(connection) == ["leak:2"]


def test_a_tile_counts_all_alerts_and_lists_the_most_severe(connection):
    for number in range(MAX_ALERTS + 5):
        raise_alert(connection, number, severity="minor" if number < 10 else "major")
    refresh(connection)
    assert len(ids(connection)) == MAX_ALERTS
    assert tile(connection)["counts"] == {"minor": 10, "major": 15, "critical": 0}


def test_only_the_named_tiles_are_refreshed(connection):
    refresh(connection)
    connection.execute(update(board_tiles).values(refreshed_at=func.now() - timedelta(minutes=5)))
    assert refresh(connection, {"harbour"}) == ["harbour"]
    assert refresh(connection, {"harbour", "valley"}) == ["harbour", "valley"]


def test_tiles_behind_are_refreshed_with_any_named_tile(connection):
    refresh(connection)
    raise_alert(connection, 1, district="valley")
    # The event of the other tile was lost, or joined with this event.
    assert refresh(connection, {"harbour"}) == ["harbour", "valley"]
    assert ids(connection, "valley") == ["leak:1"]


def test_a_tile_is_behind_until_it_is_refreshed(connection):
    assert behind(connection) == set(TILES), "no tile was ever computed"
    refresh(connection)
    assert behind(connection) == set()
    first = raise_alert(connection, 1)
    assert behind(connection) == {"harbour"}
    assert tile(connection)["behind"]
    refresh(connection, behind(connection))
    assert not tile(connection)["behind"]
    rise = {"severity": "critical", "severity_rank": 2, "revision": 2, "updated_at": func.now()}
    connection.execute(update(alerts).where(alerts.c.alert_id == first).values(**rise))
    assert behind(connection) == {"harbour"}


def test_an_alert_that_moves_leaves_its_old_tile(connection):
    first = raise_alert(connection, 1)
    refresh(connection)
    connection.execute(update(alerts).where(alerts.c.alert_id == first).values(district_id="valley", revision=2))
    assert behind(connection) == {"harbour", "valley"}
    refresh(connection, {"valley"})
    assert (ids(connection), ids(connection, "valley")) == ([], ["leak:1"])


def test_a_closed_alert_makes_no_tile_behind(connection):
    raise_alert(connection, 1)
    refresh(connection)
    past = func.now() - OPEN_FOR - timedelta(minutes=1)
    connection.execute(update(alerts).values(updated_at=past))
    connection.execute(update(board_tiles).values(since=past - timedelta(minutes=1)))
    assert behind(connection) == set()


def test_alerts_in_no_known_district_are_shown_elsewhere(connection):
    refresh(connection)
    assert [tile["id"] for tile in read_board(connection)["tiles"]] == list(DISTRICTS)
    raise_alert(connection, 1, district=None)
    raise_alert(connection, 2, district="atlantis")
    refresh(connection, {ELSEWHERE})
    assert sorted(ids(connection, ELSEWHERE)) == ["leak:1", "leak:2"]


def test_before_the_first_refresh_every_tile_is_behind(connection):
    tiles = read_board(connection)["tiles"]
    assert [tile["id"] for tile in tiles] == list(DISTRICTS)
    assert all(tile["behind"] and tile["refreshed_at"] is None for tile in tiles)


def test_decisions_awaiting_approval_are_sorted_by_urgency(connection):
    decide(connection, 1)
    awaiting(connection, 2, minutes=50, severity="major")
    awaiting(connection, 3, minutes=40)
    awaiting(connection, 4, minutes=10, severity="major")
    board = read_board(connection)
    assert [decision["id"] for decision in board["awaiting"]["decisions"]] == ["d4", "d2", "d3"]
    assert board["awaiting"]["total"] == 3
    assert [decision["id"] for decision in board["decisions"]] == ["d1"]


def test_decisions_beyond_the_limit_are_counted(connection):
    for number in range(30):
        awaiting(connection, number, minutes=10 + number)
    board = read_board(connection)
    assert board["awaiting"]["total"] == 30
    assert len(board["awaiting"]["decisions"]) < 30


def test_no_customer_is_named(connection):
    decide(connection, 1)
    awaiting(connection, 2, minutes=10)
    assert "C-000042" not in json.dumps(read_board(connection))


def test_open_alarms_are_shown_and_closed_ones_are_not(connection):
    open_alarm(connection, "raise_alerts", AlarmKind.lag, "2,000 messages behind")
    connection.execute(text("insert into alarms (source, kind, message, closed_at) values ('a', 'age', 'b', now())"))
    alarms = read_board(connection)["alarms"]
    messages = [alarm["message"] for alarm in alarms["alarms"]]
    assert (alarms["total"], messages) == (1, ["2,000 messages behind (docs/runbooks/lag-grows.md)"])


def test_the_board_is_unchanged_while_nothing_changes(connection):
    raise_alert(connection, 1)
    decide(connection, 1)
    refresh(connection)
    assert json.dumps(read_board(connection)) == json.dumps(read_board(connection))


def test_a_page_cannot_write():
    with pytest.raises(DBAPIError, match="read-only transaction"), read_only() as connection:
        connection.execute(text("delete from alerts"))


def test_a_page_does_not_wait_for_a_slow_statement():
    with pytest.raises(DBAPIError, match="statement timeout"), read_only() as connection:
        connection.execute(text("select pg_sleep(60)"))
