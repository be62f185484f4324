"""The operational database: migrations, alarms, and errors without customers' texts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import traceback
import uuid
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, MetaData, text
from sqlalchemy.exc import DBAPIError

from include.streams.operations.__main__ import main
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_alarm, open_alarm
from include.streams.operations.database import begin, engine
from include.streams.operations.migrate import MIGRATION_LOCK, upgrade
from tests.unit.operations import columns

pytestmark = pytest.mark.integration

PROJECT = Path(__file__).resolve().parents[2]
NOTHING_TO_DO = "nothing to do: the database is up to date"


def command(database_url: str, *arguments: str) -> subprocess.Popen[str]:
    """Run `python -m include.streams.operations` like a deployment; the default command is `upgrade`."""
    return subprocess.Popen(
        [sys.executable, "-m", "include.streams.operations", *(arguments or ("upgrade",))],
        cwd=PROJECT,
        env={**os.environ, "AIRFLOW_CONN_OPERATIONS_DB": database_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def url_of(conn_id: str) -> str:
    return os.environ[f"AIRFLOW_CONN_{conn_id.upper()}"]


@pytest.fixture
def declared() -> MetaData:
    """The tables of every package."""
    return columns.declared()


def definitions(conn_id: str) -> set[tuple[str, str, str]]:
    """(table, name, SQL) of every constraint and index."""
    constraints = """
        select conrelid::regclass::text, conname::text, pg_get_constraintdef(oid) from pg_constraint
        where connamespace = 'public'::regnamespace
        union all
        select tablename::text, indexname::text, indexdef from pg_indexes where schemaname = 'public'
    """
    with begin(conn_id) as connection:
        rows = connection.execute(text(constraints))
        return {tuple(row) for row in rows if not row[0].startswith("alembic_version")}


def test_the_migrations_make_exactly_the_tables_that_the_code_declares(new_database, declared):
    migrated = new_database()
    upgrade(migrated)
    with engine(migrated).connect() as connection:
        options = {
            "compare_type": True,
            "compare_server_default": True,
            "include_name": lambda name, kind, _: kind != "table" or not name.startswith("alembic_version"),
        }
        assert compare_metadata(MigrationContext.configure(connection, opts=options), declared) == []


def test_the_migrations_make_the_same_checks_keys_and_partial_indexes(new_database, declared):
    # Alembic compares none of these.
    migrated, created = new_database(), new_database()
    upgrade(migrated)
    declared.create_all(engine(created))
    assert len(definitions(created)) > 30
    # A check that is only widened is added without a scan of the table: every old row has passed the narrower check.
    assert {(*row[:2], row[2].removesuffix(" NOT VALID")) for row in definitions(migrated)} == definitions(created)


def test_a_second_upgrade_changes_nothing(new_database):
    database = new_database()
    first = upgrade(database)
    assert {"operations_0001", "landing_0001"} <= {line.split(":")[0] for line in first}
    before = definitions(database)
    assert upgrade(database) == []
    assert definitions(database) == before


def test_the_command_prints_its_changes_or_nothing_to_do(new_database):
    url = url_of(new_database())
    said = []
    for _ in range(2):
        process = command(url)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        said.append(out.splitlines())
    # Nothing else: Airflow's logs go elsewhere.
    assert all(re.match(r"[a-z]+_[0-9]{4}: ", line) for line in said[0]), said[0]
    assert "operations_0001: consumers, positions, claims, inbox, outbox, alarms" in said[0]
    assert said[1] == [NOTHING_TO_DO]


def waiting_for_lock(database: Engine) -> int:
    query = "select count(*) from pg_locks where locktype = 'advisory' and not granted and objid = :lock"
    with database.connect() as connection:
        return connection.scalar(text(query), {"lock": MIGRATION_LOCK}) or 0


def test_of_two_concurrent_upgrades_one_finds_nothing_to_do(new_database):
    database = new_database()
    with engine(database).connect() as connection:
        # The lock is held until both wait for it, so that they run concurrently.
        connection.execute(text("select pg_advisory_lock(:lock)"), {"lock": MIGRATION_LOCK})
        processes = [command(url_of(database)) for _ in range(2)]
        until = time.monotonic() + 60
        while waiting_for_lock(engine(database)) < 2:
            assert time.monotonic() < until, [process.poll() for process in processes]
            time.sleep(0.1)
        connection.execute(text("select pg_advisory_unlock(:lock)"), {"lock": MIGRATION_LOCK})
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    last_lines = {out.splitlines()[-1] for out, _ in outputs}
    assert len(last_lines) == 2
    assert NOTHING_TO_DO in last_lines


def test_a_crashed_upgrade_leaves_nothing_and_can_be_repeated(new_database, monkeypatch):
    database = new_database()
    from alembic import command as alembic_command

    whole = alembic_command.upgrade

    def crash(config, target):
        whole(config, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(alembic_command, "upgrade", crash)
        with pytest.raises(KeyboardInterrupt):
            upgrade(database)
    assert definitions(database) == set()
    assert upgrade(database)


def test_a_connection_of_the_wrong_type_is_named_in_one_line(services):
    process = command("mysql://user:secret@127.0.0.1:1/operations")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    assert err == "connection operations_db: conn_type is 'mysql'; the operational database needs 'postgres'\n"


def test_an_unreachable_database_is_one_line_without_password(services):
    process = command("postgresql://user:secret@127.0.0.1:1/operations")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert "127.0.0.1" in err
    assert "secret" not in err


@pytest.fixture
def source(services) -> str:
    upgrade()
    return f"source-{uuid.uuid4().hex[:8]}"


def episodes(source: str) -> list[tuple[str, str, bool]]:
    """(kind, message without the runbook, whether it is open) of the source's alarms, oldest first."""
    text_only = r"regexp_replace(message, ' \(docs/runbooks/[a-z-]+\.md\)', '')"
    with begin() as connection:
        query = f"select kind, {text_only}, closed_at is null from alarms where source = :source order by id"
        return [tuple(row) for row in connection.execute(text(query), {"source": source})]


def test_an_alarm_notifies_once_each_time_it_opens(source, caplog):
    for n in range(3):
        with begin() as connection:
            assert open_alarm(connection, source, AlarmKind.lag, f"first, look {n}") is (n == 0)
    assert episodes(source) == [("lag", "first, look 0", True)]
    for _ in range(2):
        with begin() as connection:
            close_alarm(connection, source, "lag")
    with begin() as connection:
        assert open_alarm(connection, source, AlarmKind.lag, "second")
    assert episodes(source) == [("lag", "first, look 0", False), ("lag", "second", True)]
    logged = [record.levelname for record in caplog.records if source in record.getMessage()]
    assert logged == ["ERROR", "INFO", "ERROR"]


def test_closing_an_alarm_closes_no_other(source):
    with begin() as connection:
        open_alarm(connection, source, AlarmKind.lag, "far behind")
        open_alarm(connection, source, AlarmKind.age, "old")
        open_alarm(connection, f"{source}-other", AlarmKind.lag, "far behind too")
        close_alarm(connection, source, "lag")
        close_alarm(connection, source, "never opened")
    assert episodes(source) == [("lag", "far behind", False), ("age", "old", True)]
    assert episodes(f"{source}-other") == [("lag", "far behind too", True)]


@pytest.mark.parametrize("first_commits", [True, False])
def test_of_two_concurrent_raises_one_opens_the_alarm(source, first_commits):
    opened: list[bool] = []

    def second() -> None:
        with begin() as connection:
            opened.append(open_alarm(connection, source, AlarmKind.lag, "second"))

    thread = threading.Thread(target=second)
    with engine().connect() as connection, connection.begin() as transaction:
        assert open_alarm(connection, source, AlarmKind.lag, "first")
        thread.start()
        thread.join(timeout=0.5)
        assert thread.is_alive(), "it did not wait to see whether the first stays"
        if not first_commits:
            transaction.rollback()
    thread.join(timeout=20)
    assert opened == [not first_commits]
    assert [message for _, message, _ in episodes(source)] == ["first" if first_commits else "second"]


def run(*arguments: str, database_url: str | None = None) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of the command."""
    process = command(database_url or os.environ["AIRFLOW_CONN_OPERATIONS_DB"], *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_only_open_alarms_are_listed_oldest_first(source):
    with begin() as connection:
        open_alarm(connection, source, AlarmKind.lag, "far behind")
        open_alarm(connection, f"{source}-other", AlarmKind.messages_lost, "offsets [0, 3)")
        open_alarm(connection, source, AlarmKind.age, "over")
        close_alarm(connection, source, "age")
    code, out, _ = run("alarms")
    mine = [line for line in out.splitlines() if source in line]
    assert code == 0
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC  ", line) for line in out.splitlines()), out
    assert [line.split("  ", 1)[1] for line in mine] == [
        f"{source}  lag  far behind (docs/runbooks/lag-grows.md)",
        f"{source}-other  messages_lost  offsets [0, 3) (docs/runbooks/messages-lost.md)",
    ]


def webhook_texts(source: str) -> list[str]:
    """The texts of the webhook requests about the source's alarms, oldest first."""
    with begin() as connection:
        bodies = connection.scalars(text("select body from outbox where consumer = 'alarms' order by sequence"))
        sent = [json.loads(bytes(body)) for body in bodies]
    return [body["text"] for body in sent if body["source"] == source]


def test_without_an_open_alarm_the_list_says_so(new_database):
    database = new_database()
    upgrade(database)
    assert run("alarms", database_url=url_of(database))[:2] == (0, "no alarm is open\n")


def test_a_person_closes_one_alarm_and_no_other(source, capsys):
    with begin() as connection:
        open_alarm(connection, source, AlarmKind.messages_lost, "offsets [0, 3)")
        open_alarm(connection, source, AlarmKind.lag, "far behind")
    close = ("close-alarm", source, "messages_lost", "--by", "ann", "--reason", "sent again\nby hand")
    assert run(*close)[:2] == (0, f"closed: messages_lost of {source}\n")
    closed = ("messages_lost", "offsets [0, 3) (closed by ann: sent again by hand)", False)
    assert episodes(source) == [closed, ("lag", "far behind", True)]
    assert "closed by ann: sent again by hand" in webhook_texts(source)[-1]
    assert main([*close]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(rf"no alarm messages_lost of {source} is open \(the last one was closed at \d{{4}}-.* UTC\)", err)
    assert episodes(source) == [closed, ("lag", "far behind", True)]


def test_closing_needs_a_reason_and_an_open_alarm(source, capsys):
    with begin() as connection:
        open_alarm(connection, source, AlarmKind.messages_lost, "offsets [0, 3)")
    assert main(["close-alarm", source, "messages_lost", "--reason", "  "]) == 1
    assert main(["close-alarm", source, "lag", "--reason", "dealt with"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "the reason is empty" in err
    assert f"no alarm lag of {source} is open; `alarms` lists the open ones" in err
    with pytest.raises(SystemExit):
        main(["close-alarm", source, "messages_lost"])
    assert episodes(source) == [("messages_lost", "offsets [0, 3)", True)]


def test_a_database_without_tables_is_an_error_of_one_line(new_database):
    code, out, err = run("alarms", database_url=url_of(new_database()))
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1, err
    assert "alarms" in err


STATEMENTS = {
    "a unique key": "insert into private values (1, :value), (2, :value)",
    "a missing value": "insert into private values (null, :value)",
    "a check": "insert into private values (-1, :value)",
    "a number": "select cast(cast(:value as text) as bigint)",
    "a time": "select cast(cast(:value as text) as timestamptz)",
    "a JSON document": "select cast(cast(:value as text) as jsonb)",
    "a NUL byte": "insert into private values (3, :value || :nul)",
    "a length": "insert into private (id, short) values (4, :value)",
}


def execute(statement: str, **parameters: str) -> None:
    table = "create temporary table private (id int not null check (id > 0), note text unique, short varchar(3))"
    with begin() as connection:
        connection.execute(text(table))
        connection.execute(text(statement), parameters)


@pytest.mark.parametrize("what", STATEMENTS)
def test_a_database_error_shows_no_value_of_a_row(services, what):
    statement = STATEMENTS[what]
    parameters = {"value": "my neighbour Mrs Jones has moved to 12 Quay Street", "nul": "\0"}
    with pytest.raises(DBAPIError) as caught:
        execute(statement, **{name: value for name, value in parameters.items() if f":{name}" in statement})
    shown = "".join(traceback.format_exception(caught.value))
    assert "Jones" not in shown
    assert "12 Quay" not in shown
    # The error still names the problem and the statement.
    assert type(caught.value.orig).__name__ in shown
    assert "SQL: " in shown


def test_a_violated_constraint_is_named(source):
    with pytest.raises(DBAPIError, match='violates check constraint "ck_inbox_outcome"'):
        execute("insert into inbox values (:value, '', 0, 0, '', '', null, 'lost', null, null, '')", value="me")
