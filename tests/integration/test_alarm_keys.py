"""Several alarms of a kind for one source, each with a key; and alarms of releases without keys."""

from __future__ import annotations

import json
import uuid

import pytest
from alembic import command
from sqlalchemy import text

from include.streams.operations.__main__ import main
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import (
    add_to_alarm,
    close_alarm,
    close_others,
    last_closed,
    open_alarm,
    open_alarms,
    open_keys,
)
from include.streams.operations.database import begin
from include.streams.operations.migrate import configurations, upgrade

pytestmark = pytest.mark.integration

KIND = AlarmKind.suite_failed
# Statements of the release before, which has neither the column `key` nor the wider unique key.
OLD_OPEN = "insert into alarms (source, kind, message) values (:source, :kind, 'of old') on conflict do nothing"
OLD_CLOSE = "update alarms set closed_at = now() where source = :source and kind = :kind and closed_at is null"


@pytest.fixture
def source(services) -> str:
    upgrade()
    return f"source-{uuid.uuid4().hex[:8]}"


def open_with(source: str, *keys: str) -> None:
    with begin() as connection:
        for key in keys:
            open_alarm(connection, source, KIND, f"about {key}", key=key)


def opened(source: str) -> list[tuple[str, str]]:
    """(kind, key) of the source's open alarms, oldest first."""
    return [(alarm.kind, alarm.key) for alarm in open_alarms() if alarm.source == source]


def execute_old(statement: str, source: str, kind: str) -> int:
    with begin() as connection:
        return connection.execute(text(statement), {"source": source, "kind": kind}).rowcount


def notifications(source: str) -> list[dict]:
    with begin() as connection:
        bodies = connection.scalars(text("select body from outbox where consumer = 'alarms' order by sequence"))
        sent = [json.loads(bytes(body)) for body in bodies]
    return [payload for payload in sent if payload["source"] == source]


def test_each_key_has_an_alarm_of_its_own_with_one_notification(source, caplog):
    for _ in range(2):
        open_with(source, "7", "8")
    assert opened(source) == [(KIND, "7"), (KIND, "8")]
    first, second = notifications(source)
    assert first["text"] == f"alarm opened: {source} suite_failed 7: about 7 (docs/runbooks/suite-failed.md)"
    assert (second["key"], second["runbook"]) == ("8", "docs/runbooks/suite-failed.md")
    assert f"alarm: source={source} kind=suite_failed key=7 about 7" in caplog.text


def test_closing_one_key_closes_no_other(source):
    open_with(source, "", "7", "8")
    with begin() as connection:
        assert close_alarm(connection, source, KIND, key="7")
        assert not close_alarm(connection, source, KIND, key="9")
        assert last_closed(connection, source, KIND, "7") is not None
        assert last_closed(connection, source, KIND, "8") is None
    assert opened(source) == [(KIND, ""), (KIND, "8")]
    assert [payload["event"] for payload in notifications(source)] == ["opened"] * 3 + ["closed"]
    assert notifications(source)[-1]["key"] == "7"


def test_closing_the_others_keeps_other_kinds_and_sources(source):
    open_with(source, "", "7", "8")
    with begin() as connection:
        open_alarm(connection, source, AlarmKind.lag, "far behind")
        open_alarm(connection, f"{source}-other", KIND, "about 9", key="9")
        close_others(connection, source, KIND, ["8", "9"])
    assert opened(source) == [(KIND, "8"), (AlarmKind.lag, "")]
    assert opened(f"{source}-other") == [(KIND, "9")]
    with begin() as connection:
        close_others(connection, source, KIND)
    assert opened(source) == [(AlarmKind.lag, "")]


def test_a_text_names_the_runbook_of_its_kind_unless_it_names_another(source):
    with begin() as connection:
        open_alarm(connection, source, AlarmKind.messages_lost, "1 lost (docs/runbooks/landing-gap.md)")
        add_to_alarm(connection, source, AlarmKind.messages_lost, "2 lost")
    (alarm,) = [alarm for alarm in open_alarms() if alarm.source == source]
    assert alarm.message == "1 lost (docs/runbooks/landing-gap.md); 2 lost"
    first, further = notifications(source)
    assert first["runbook"] == "docs/runbooks/landing-gap.md"
    assert further["message"] == "2 lost (docs/runbooks/messages-lost.md)"


def test_a_person_closes_the_alarm_of_one_key(source, capsys):
    open_with(source, "7", "8")
    assert main(["alarms"]) == 0
    assert f"{source}  suite_failed  7  about 7 (docs/runbooks/suite-failed.md)\n" in capsys.readouterr().out
    assert main(["close-alarm", source, "suite_failed", "--reason", "seen"]) == 1
    assert f"no alarm suite_failed of {source} is open" in capsys.readouterr().err
    assert main(["close-alarm", source, "suite_failed", "7", "--reason", "seen"]) == 0
    assert capsys.readouterr().out == f"closed: suite_failed 7 of {source}\n"
    assert opened(source) == [(KIND, "8")]
    assert main(["close-alarm", source, "suite_failed", "7", "--reason", "seen"]) == 1
    assert f"no alarm suite_failed 7 of {source} is open (the last one was closed at " in capsys.readouterr().err


def test_an_alarm_that_the_release_before_opens_has_its_key_and_is_closed(source):
    for kind in ("suite_failed:7", "suite_failed:7", "suite_failed:8", "lag"):
        execute_old(OLD_OPEN, source, kind)
    assert opened(source) == [(KIND, "7"), (KIND, "8"), ("lag", "")]
    with begin() as connection:
        assert open_keys(connection, source, KIND).keys() == {"7", "8"}
        assert close_alarm(connection, source, KIND, key="7")
        assert not close_alarm(connection, source, KIND)
        assert last_closed(connection, source, KIND, "7") is not None
    assert opened(source) == [(KIND, "8"), ("lag", "")]
    assert notifications(source)[-1]["text"].startswith(f"alarm closed: {source} suite_failed 7: of old")
    # It closes the alarms that it opened, also if there are alarms of this release.
    open_with(source, "9")
    assert execute_old(OLD_CLOSE, source, "suite_failed:8") == 1
    assert execute_old(OLD_CLOSE, source, "lag") == 1
    assert opened(source) == [(KIND, "9")]


OLD_ROWS = [
    ("count", "suite_failed:7", "suite_failed", "7"),
    ("count", "lag", "lag", ""),
    ("count", "meter_clock_ahead:M-1:a b", "meter_clock_ahead", "M-1:a b"),
    ("import_site_register", "file_rejected:1795-e27", "file_rejected", "1795-e27"),
    ("maintain.prune", "dag_failed", "dag_failed", ""),
    ("execute_decisions.settle@SR-1:2", "dag_failed", "dag_failed", "SR-1:2"),
    ("tables.keep[12]", "dag_failed", "dag_failed", "map_index=12"),
    ("by_key.work[3]@SR~0f", "dag_failed", "dag_failed", "SR~0f,map_index=3"),
]


def test_the_migration_splits_alarms_and_its_way_back_joins_them(new_database):
    database, config = new_database(), configurations()["operations"]

    def migrate(to: str, change=command.upgrade) -> None:
        with begin(database) as connection:
            config.attributes.update(connection=connection, on_version_apply=lambda **_: None)
            change(config, to)

    def found(*columns: str) -> list[tuple]:
        with begin(database) as connection:
            rows = connection.execute(text(f"select {', '.join(columns)}, closed_at is null from alarms order by id"))
            return [tuple(row) for row in rows]

    migrate("operations_0012")
    with begin(database) as connection:
        values = "(:source, :kind, '', cast(:at as timestamptz))"
        old = text(f"insert into alarms (source, kind, message, closed_at) values {values}")
        for closed_at in (None, "2026-01-01", "2026-01-02"):
            for source, kind, *_ in OLD_ROWS:
                connection.execute(old, {"source": source, "kind": kind, "at": closed_at})
    before = found("source", "kind")
    migrate("heads")
    plain = [source.partition("@")[0].partition("[")[0] for source, *_ in OLD_ROWS]
    now = [(source, kind, key) for source, (_, _, kind, key) in zip(plain, OLD_ROWS, strict=True)]
    assert found("source", "kind", "key") == [(*row, is_open) for is_open in (True, False, False) for row in now]
    migrate("operations_0012", command.downgrade)
    assert found("source", "kind") == before
