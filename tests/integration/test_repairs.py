"""Repairs of the operational database, and the record of who did them, on a real PostgreSQL."""

from __future__ import annotations

import uuid
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from include.streams.operations import audit
from include.streams.operations.__main__ import main
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import open_alarm, open_alarms
from include.streams.operations.audit import Actor, Refused, repair_rows, repair_services
from include.streams.operations.database import begin
from include.streams.operations.heartbeats import beat
from include.streams.operations.migrate import upgrade
from include.streams.operations.repair_runs import run_repair
from include.streams.operations.repairs import CloseAlarm, RepairOutbox, close, repair_outbox
from include.streams.operations.retention import AUDIT_KEPT, Rule, prune
from include.streams.operations.tables import operations_audit
from tests.repairs import in_two_tries, records_of

pytestmark = pytest.mark.integration

KIND = AlarmKind.messages_lost


@pytest.fixture
def source(services) -> str:
    upgrade()
    name = f"source-{uuid.uuid4().hex[:8]}"
    with begin() as connection:
        open_alarm(connection, name, KIND, "offsets [0, 3)")
    return name


def run(name: str = "manual__1", user: str | None = "ann") -> Any:
    return SimpleNamespace(dag_id="close_alarm", run_id=name, triggering_user_name=user, run_type="manual")


def closing(source: str, **changes: Any) -> CloseAlarm:
    params: Any = {"source": source, "kind": str(KIND), "key": "", "reason": "sent again", "dry_run": False, **changes}
    return params


def opened(source: str) -> list[str]:
    return [alarm.kind for alarm in open_alarms() if alarm.source == source]


def records(source: str) -> list[dict[str, Any]]:
    return records_of("source", source)


def test_a_dry_run_closes_nothing_and_is_recorded(source):
    report = run_repair(close, closing(source, dry_run=True, reason=""), run())
    assert report == {"dry_run": True, "lines": [f"closed: messages_lost of {source}"]}
    assert opened(source) == ["messages_lost"]
    (record,) = records(source)
    assert (record["user_name"], record["dry_run"], record["outcome"]) == ("ann", True, "done")


def test_a_repair_is_recorded_with_user_reason_arguments_and_result(source):
    run_repair(close, closing(source, reason=" sent \n again "), run())
    assert opened(source) == []
    (record,) = records(source)
    assert {name: record[name] for name in ("user_name", "dag_id", "run_id", "action", "reason", "outcome")} == {
        "user_name": "ann",
        "dag_id": "close_alarm",
        "run_id": "manual__1",
        "action": "close_alarm",
        "reason": "sent again",
        "outcome": "done",
    }
    assert record["arguments"] == {"source": source, "kind": "messages_lost", "key": ""}
    assert record["detail"] == f"closed: messages_lost of {source}"
    assert record["at"] <= record["ended_at"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reason": " "}, "the reason is empty: write why the repair is done, or set dry_run"),
        ({"key": "a\x1b[2J"}, "key has characters that cannot be shown"),
        ({"key": "a\0b"}, "key has characters that cannot be shown"),
    ],
)
def test_parameters_that_cannot_be_recorded_are_refused(source, changes, expected):
    with pytest.raises(AirflowFailException, match=expected.replace("[", r"\[")):
        run_repair(close, closing(source, **changes), run())
    assert (opened(source), records(source)) == (["messages_lost"], [])


def test_a_repair_that_is_not_possible_fails_without_a_retry_and_is_recorded(source):
    with pytest.raises(AirflowFailException, match="no alarm lag of"):
        run_repair(close, closing(source, kind="lag"), run())
    (record,) = records(source)
    assert record["outcome"] == "refused"
    assert record["detail"].startswith(f"no alarm lag of {source} is open; `alarms` lists")


def test_a_cleared_run_reports_what_it_did_and_changes_nothing(source):
    report = run_repair(close, closing(source), run())
    with begin() as connection:
        open_alarm(connection, source, KIND, "the cause exists again")
    assert run_repair(close, closing(source), run()) == report
    assert opened(source) == ["messages_lost"]
    # A new run does it again, and so does a run of the same name with other parameters.
    run_repair(close, closing(source), run("manual__2"))
    assert opened(source) == []


def test_a_repair_that_is_killed_before_its_commit_is_done_by_the_retry(source, monkeypatch):
    def work_then_die(connection):
        close_it(connection)
        raise KeyboardInterrupt

    def close_it(connection) -> list[str]:
        connection.execute(text("update alarms set closed_at = now() where source = :source"), {"source": source})
        return ["closed"]

    by = Actor("ann", "close_alarm", "manual__1")
    with pytest.raises(KeyboardInterrupt):
        repair_rows("close_alarm", closing(source), by, work_then_die)
    assert opened(source) == ["messages_lost"]
    repair_rows("close_alarm", closing(source), by, close_it)
    assert opened(source) == []
    assert [record["outcome"] for record in records(source)] == ["started", "done"]


def test_two_tries_of_one_run_do_the_repair_once(source):
    done: list[str] = []

    def work(connection) -> list[str]:
        done.append("done")
        return ["done"]

    by = Actor("ann", "close_alarm", "manual__1")
    reports = in_two_tries(lambda: repair_rows("close_alarm", closing(source), by, work))
    assert reports == [{"dry_run": False, "lines": ["done"]}] * 2
    assert done == ["done"]


def test_the_error_of_a_service_is_recorded_and_a_later_try_repairs(source):
    answers: list[Any] = [ConnectionError("no answer"), ["restarted"]]

    def work() -> list[str]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    by = Actor("ann", "restart", "manual__1")
    with pytest.raises(ConnectionError):
        repair_services("restart", closing(source), by, work)
    repair_services("restart", closing(source), by, work)
    assert [(record["outcome"], record["detail"]) for record in records(source)] == [
        ("failed", "ConnectionError: no answer"),
        ("done", "restarted"),
    ]


def test_a_repair_without_a_database_for_its_record_changes_nothing(source, monkeypatch):
    def unavailable():
        raise OperationalError("insert", {}, Exception("no database"))

    called: list[int] = []
    monkeypatch.setattr(audit, "begin", unavailable)
    with pytest.raises(OperationalError):
        repair_services("restart", closing(source), Actor("ann"), lambda: [str(called.append(1))])
    assert called == []


def test_a_dag_that_was_removed_is_forgotten_with_its_alarm(source):
    dag = f"removed_{source}"
    beat(dag, every=timedelta(minutes=5))
    with begin() as connection:
        open_alarm(connection, dag, AlarmKind.dag_silent, "last ran long ago")
    report = run_repair(close, closing(dag, kind="dag_silent"), run())
    assert report["lines"] == [f"closed: dag_silent of {dag}", f"forgotten: when the Dag {dag} last ran"]
    with begin() as connection:
        assert connection.scalar(text("select count(*) from heartbeats where dag_id = :dag"), {"dag": dag}) == 0


def test_a_command_records_the_user_of_the_shell(source, capsys):
    arguments = ("close-alarm", source, "messages_lost", "--reason", "sent again", "--by", "bob")
    assert main([*arguments, "--dry-run"]) == 0
    assert opened(source) == ["messages_lost"]
    assert main([*arguments]) == 0
    assert opened(source) == []
    assert [(r["user_name"], r["dag_id"], r["dry_run"]) for r in records(source)] == [
        ("bob", None, True),
        ("bob", None, False),
    ]
    assert capsys.readouterr().out == f"closed: messages_lost of {source}\n" * 2


def test_records_are_kept_for_years(source):
    with pytest.raises(Refused):
        close(closing(source, kind="lag"), Actor("ann"))
    rule = Rule(operations_audit, "at", AUDIT_KEPT)
    prune([rule], seconds=10)
    assert len(records(source)) == 1
    with begin() as connection:
        old = "update operations_audit set at = now() - interval '6 years' where arguments ->> 'source' = :source"
        connection.execute(text(old), {"source": source})
    prune([rule], seconds=10)
    assert records(source) == []


@pytest.fixture
def box(source) -> str:
    """A consumer with two failed rows, a skipped one, and an unavailable receiver."""
    rows = "insert into outbox (consumer, kind, destination, body, state, attempts, last_error) values "
    rows += "(:name, 'request', :to, 'a body', :state, 20, :error)"
    away = "insert into outbox_routes (consumer, kind, destination, failures, retry_at) values "
    away += "(:name, 'request', 'crm', 7, now() + interval '1 minute')"
    with begin() as connection:
        for state in ("failed", "failed", "skipped"):
            values = {"name": source, "to": "crm", "state": state, "error": "404 \x1b[2J"}
            connection.execute(text(rows), values)
        connection.execute(text(away), {"name": source})
    return source


def outbox_params(consumer: str | None, **changes: Any) -> RepairOutbox:
    params: Any = {"action": "deliver_again", "state": "failed", "consumer": consumer, "destination": None, "row": None}
    return {**params, "reason": "the token was renewed", "dry_run": False, **changes}  # type: ignore[return-value]


def states(consumer: str) -> list[str]:
    query = text("select state from outbox where consumer = :name and kind = 'request' order by sequence")
    with begin() as connection:
        return list(connection.scalars(query, {"name": consumer}))


def test_failed_rows_are_delivered_again_and_no_other_rows(box):
    lines = repair_outbox(outbox_params(box, dry_run=True), Actor("ann"))["lines"]
    assert lines[0] == f"2 failed rows of {box} to crm: pending, deliver_outbox delivers them within seconds"
    assert lines[1].endswith(r": 20 attempts (404 \x1b[2J)")
    assert not any("a body" in line for line in lines)
    assert states(box) == ["failed", "failed", "skipped"]
    row = lines[1].partition(":")[0]
    repair_outbox(outbox_params(None, action="skip", row=row), Actor("ann"))
    assert states(box) == ["skipped", "failed", "skipped"]
    repair_outbox(outbox_params(box), Actor("ann"))
    assert states(box) == ["skipped", "pending", "skipped"]
    repair_outbox(outbox_params(None, state="skipped", row=row), Actor("ann"))
    assert states(box) == ["pending", "pending", "skipped"]


def test_an_unavailable_receiver_is_tried_at_once(box):
    (line,) = repair_outbox(outbox_params(box, action="deliver_now"), Actor("ann"))["lines"]
    assert line == f"{box} to crm: tried at once, after 7 failed attempts"
    with begin() as connection:
        due = text("select retry_at <= now() from outbox_routes where consumer = :name")
        assert connection.scalar(due, {"name": box}) is True


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"consumer": None}, "name a consumer, a destination or a row"),
        ({"destination": "other"}, "no failed row is in the selection"),
        ({"row": "1"}, "'1' is no id of a row: copy it from the dry run"),
        ({"action": "skip", "state": "skipped"}, "the rows are skipped already"),
        ({"action": "deliver_now", "destination": "other"}, "no receiver in the selection is known to be unavailable"),
    ],
)
def test_an_outbox_repair_without_rows_is_refused(box, changes, expected):
    with pytest.raises(Refused, match=expected):
        repair_outbox(outbox_params(**{"consumer": box, **changes}), Actor("ann"))


def test_the_command_repairs_the_outbox_too(box, capsys):
    assert main(["repair-outbox", "deliver-again", "--consumer", box, "--reason", "renewed", "--by", "bob"]) == 0
    assert capsys.readouterr().out.startswith("2 failed rows of")
    assert states(box) == ["pending", "pending", "skipped"]
    assert [record["user_name"] for record in records_of("consumer", box)] == ["bob"]
