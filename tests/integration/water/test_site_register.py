"""Files of the register on a real object store and a real PostgreSQL: applied once, or rejected."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.providers.google.cloud.triggers.gcs import GCSPrefixBlobTrigger
from sqlalchemy import delete, func, select, update

from include.streams.lake.buckets import Bucket, bucket
from include.streams.operations.alarms import open_alarms
from include.streams.operations.database import begin
from include.streams.operations.migrate import upgrade
from include.streams.operations.tables import alarms as alarms_table
from include.water.register import importing
from include.water.register.layout import ARCHIVE, INCOMING, MAX_BYTES, REJECTED, Kind, identity
from include.water.register.objects import NotSettled, list_files
from include.water.register.samples import bad_file, good_file
from include.water.retention import remove_register_files
from include.water.tables import register_customers, register_files, register_sites

pytestmark = pytest.mark.integration

HEADER = b"site_id,name,kind,district_id,latitude,longitude\n"
TANK = b"tank-1,Tank,tank,harbour,37.8,-122.2\n"


@pytest.fixture(scope="module", autouse=True)
def operations(landing_services) -> None:
    upgrade()


@pytest.fixture(autouse=True)
def nothing_there(operations) -> None:
    for entry in bucket().list("register/"):
        bucket().delete(entry.path)
    with begin() as connection:
        for table in (register_files, register_sites, register_customers):
            connection.execute(delete(table))
        connection.execute(delete(alarms_table).where(alarms_table.c.source == importing.SOURCE))


def drop(name: str, data: bytes) -> dict[str, Any]:
    """Upload a file below the prefix; returns its entry in the listing."""
    bucket().write(f"{INCOMING}{name}", data)
    return next(file for file in list_files() if file["name"] == f"{INCOMING}{name}")


def rows(table) -> list[Any]:
    with begin() as connection:
        return list(connection.execute(select(table)))


def paths(prefix: str) -> list[str]:
    return [entry.path for entry in bucket().list(prefix)]


def alarms() -> list[str]:
    """The rejected files with an open alarm."""
    own_alarms = [alarm for alarm in open_alarms() if alarm.source == importing.SOURCE]
    assert {alarm.kind for alarm in own_alarms} <= {"file_rejected"}
    return [alarm.key for alarm in own_alarms]


@pytest.mark.parametrize(("kind", "table"), [(Kind.sites, register_sites), (Kind.customers, register_customers)])
def test_a_good_file_is_applied_and_archived(kind, table):
    data = good_file(kind)
    done = importing.import_file(drop(f"{kind}-2026.csv", data))
    assert done == {"kind": kind, "state": "applied", "rows": 50}
    assert len(rows(table)) == 50
    assert paths(INCOMING) == []
    (archived,) = paths(ARCHIVE)
    assert bucket().read(archived)[0] == data  # type: ignore[index]
    assert archived.endswith(f"/{kind}-2026.csv")


@pytest.mark.parametrize("kind", list(Kind))
def test_a_bad_file_changes_nothing_and_is_rejected_with_a_report(kind):
    file = drop(f"{kind}.csv", bad_file(kind))
    assert importing.import_file(file)["state"] == "rejected"
    assert rows(register_sites) == rows(register_customers) == []
    assert paths(INCOMING) == []
    kept = {path.rsplit("/", 1)[1] for path in paths(REJECTED)}
    assert kept == {f"{kind}.csv", "report.html", "result.json"}
    (page,) = (path for path in paths(REJECTED) if path.endswith(".html"))
    text = bucket().read(page)[0].decode()  # type: ignore[index]
    assert "line 3: &#x27;&lt;img src=x onerror=alert(1)&gt;&#x27;" in text
    assert "<img" not in text
    assert alarms() == [identity(file["name"], file["generation"])]


def test_a_corrected_file_under_the_same_name_closes_the_alarm():
    importing.import_file(drop("sites.csv", bad_file(Kind.sites)))
    before = alarms()
    importing.import_file(drop("sites.csv", good_file(Kind.sites)))
    assert len(before) == 1
    assert alarms() == []


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("sites.csv", HEADER, "rows of the file"),
        ("sites.csv", HEADER + TANK + b"tank-2,caf\xe9,tank,harbour,1,1\n", "line 3 is not UTF-8"),
        ("sites.csv", (HEADER + TANK).decode().encode("utf-16"), "UTF-16"),
        ("sites.csv", HEADER + b"tank-1,T\0nk,tank,harbour,1,1\n", "line 2 holds a NUL byte"),
        ("sites.csv", HEADER + b'tank-1,"open,tank,harbour,1,1\n', "no CSV"),
        ("sites.csv", HEADER + b"tank-1,two,fields\n", "line 2 has 3 fields, and the first 6"),
        ("sites.csv", HEADER + b'tank-1,"' + b"x" * 2000 + b'",tank,harbour,1,1\n', "no CSV"),
        ("sites.csv", b"site_id;name\n", "semicolons"),
        ("sites.csv", b"site_id,name\n", "lacks the columns kind"),
        ("sites.csv", HEADER.strip() + b",secret\n", "columns too many"),
        ("sites.csv", HEADER + TANK.replace(b"37.8", b"nan"), "latitude: a number"),
        ("sites.csv", HEADER + TANK.replace(b"37.8", b"137.8"), "latitude_number: -90 to 90"),
        ("sites.csv", HEADER + TANK.replace(b"harbour", b"Atlantis"), "a district of the network"),
        ("sites.csv", HEADER + TANK.replace(b"tank-1", b'"tank-1\n\nx"'), "lower-case letters"),
        ("sites.csv", HEADER + TANK + TANK, "site_id: each value once"),
        ("sites.csv", HEADER + TANK.replace(b"Tank", b""), "name: never missing"),
        ("notes.txt", b"hello", "the file&#x27;s name"),
        ("..%2f..%2fsites<b>.exe", b"hello", "the file&#x27;s name"),
    ],
)
def test_an_invalid_file_is_rejected_with_the_reason(name, data, why):
    assert importing.import_file(drop(name, data))["state"] == "rejected"
    (page,) = (path for path in paths(REJECTED) if path.endswith(".html"))
    text = bucket().read(page)[0].decode()  # type: ignore[index]
    assert why in text
    assert "secret" not in text
    assert "<b>" not in text
    assert rows(register_sites) == []


def test_quoted_commas_and_windows_line_ends_are_accepted():
    text = (HEADER + b'tank-1,"Tank, upper",tank,harbour,37.8,-122.2\n').replace(b"\n", b"\r\n")
    importing.import_file(drop("sites.csv", b"\xef\xbb\xbf" + text))
    assert [row.name for row in rows(register_sites)] == ["Tank, upper"]


def test_a_too_large_file_is_rejected_unread(monkeypatch):
    monkeypatch.setattr(importing, "read_rows", lambda *_: pytest.fail("it was read"))
    file = drop("sites.csv", HEADER + TANK)
    assert importing.import_file({**file, "size": MAX_BYTES + 1})["state"] == "rejected"
    assert "sites.csv" in {path.rsplit("/", 1)[1] for path in paths(REJECTED)}


def test_a_retry_after_a_kill_before_the_move_applies_nothing(monkeypatch):
    file = drop("sites.csv", HEADER + TANK)
    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "move", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            importing.import_file(file)
    (before,) = rows(register_sites)
    assert importing.import_file(file)["state"] == "applied"
    assert rows(register_sites) == [before]
    assert paths(INCOMING) == []
    # A cleared run imports the finished file again.
    assert importing.import_file(file)["state"] == "applied"
    assert len(rows(register_files)) == len(paths(ARCHIVE)) == 1


def test_old_files_are_deleted_unless_in_use_or_alarmed():
    replaced = drop("sites.csv", HEADER + TANK)
    importing.import_file(replaced)
    importing.import_file(drop("sites-2.csv", HEADER + TANK.replace(b"Tank", b"New")))
    standing = paths(ARCHIVE)[-1]
    importing.import_file(drop("sites-3.csv", bad_file(Kind.sites)))
    rejected = paths(REJECTED)

    assert remove_register_files(timedelta(days=1), seconds=60) == 0
    assert remove_register_files(timedelta(0), seconds=0) == 0
    # Killed before the row was deleted: the object is already deleted.
    bucket().delete(paths(ARCHIVE)[0])
    assert remove_register_files(timedelta(0), seconds=60) == 1
    assert (paths(ARCHIVE), paths(REJECTED)) == ([standing], rejected)
    assert {row.object_name for row in rows(register_files)} == {f"{INCOMING}sites-2.csv", f"{INCOMING}sites-3.csv"}
    assert [row.name for row in rows(register_sites)] == ["New"]

    with begin() as connection:
        connection.execute(
            update(alarms_table).where(alarms_table.c.source == importing.SOURCE).values(closed_at=func.now())
        )
    assert remove_register_files(timedelta(0), seconds=60) == 1
    assert paths(REJECTED) == []
    assert importing.import_file(replaced)["state"] == "gone", "a run that is cleared later applies nothing"


def test_a_deployment_without_an_object_store_has_no_files_to_remove(monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT")
    assert remove_register_files(timedelta(0), seconds=60) == 0


def test_an_old_file_that_was_never_moved_keeps_its_row(monkeypatch):
    file = drop("sites.csv", bad_file(Kind.sites))
    monkeypatch.setattr(Bucket, "move", lambda *_: None)
    importing.import_file(file)
    with begin() as connection:
        connection.execute(
            update(alarms_table).where(alarms_table.c.source == importing.SOURCE).values(closed_at=func.now())
        )
    assert remove_register_files(timedelta(0), seconds=60) == 0
    assert len(rows(register_files)) == 1


def test_a_file_killed_between_copy_and_deletion_exists_once():
    file = drop("sites.csv", HEADER + TANK)
    to = f"{ARCHIVE}copy/sites.csv"
    objects = bucket()
    objects.write(to, HEADER + TANK)
    for _ in range(2):
        assert objects.move(file["name"], file["generation"], to)
        assert (paths(INCOMING), paths(ARCHIVE)) == ([], [to])


def test_a_replaced_file_is_another_file():
    first = drop("sites.csv", HEADER + TANK)
    second = drop("sites.csv", HEADER + TANK.replace(b"Tank", b"New"))
    assert first["generation"] < second["generation"]
    assert importing.import_file(first)["state"] == "gone"
    assert importing.import_file(second)["state"] == "applied"
    assert [row.name for row in rows(register_sites)] == ["New"]


def test_a_file_replaced_after_its_import_stays_for_the_next_run():
    first = drop("sites.csv", HEADER + TANK)
    objects = bucket()
    objects.write(first["name"], HEADER + TANK.replace(b"Tank", b"New"))
    objects.move(first["name"], first["generation"], f"{ARCHIVE}x/sites.csv")
    (left,) = list_files()
    assert left["generation"] > first["generation"]
    assert objects.read(left["name"])[0].count(b"New") == 1  # type: ignore[index]


def test_the_file_uploaded_last_wins_in_any_order():
    old = drop("sites-1.csv", HEADER + TANK)
    new = drop("sites-2.csv", HEADER + TANK.replace(b"Tank", b"New"))
    for file in (new, old):
        importing.import_file(file)
    assert [row.name for row in rows(register_sites)] == ["New"]


def test_two_concurrent_processes_apply_a_file_once():
    file = drop("customers.csv", good_file(Kind.customers, rows=3000))
    results: list[dict] = []
    threads = [threading.Thread(target=lambda: results.append(importing.import_file(file))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {result["state"] for result in results} <= {"applied", "gone"}
    assert len(rows(register_customers)) == 3000
    assert len(rows(register_files)) == len(paths(ARCHIVE)) == 1
    assert paths(INCOMING) == []


def test_markers_are_deleted_and_unfinished_uploads_wait():
    objects = bucket()
    objects.write(INCOMING, b"")
    objects.write(f"{INCOMING}sites.csv", b"")
    objects.write(f"{INCOMING}customers.csv.part", b"half a file")
    with pytest.raises(NotSettled):
        list_files()
    assert INCOMING not in paths(INCOMING)
    # Other files do not wait for them.
    assert [file["name"] for file in [drop("sites-2.csv", HEADER + TANK)]] == [f"{INCOMING}sites-2.csv"]
    assert len(list_files()) == 1
    later = list_files(datetime.now(UTC) + timedelta(minutes=2))
    assert len(later) == 3
    states = {file["name"].rsplit("/", 1)[1]: importing.import_file(file)["state"] for file in later}
    assert states == {"sites.csv": "rejected", "customers.csv.part": "rejected", "sites-2.csv": "applied"}


def test_the_listing_fits_into_an_xcom():
    drop("sites.csv", HEADER + TANK)
    assert len(json.dumps(list_files())) < 300


def test_the_providers_trigger_needs_no_token_for_an_emulator():
    trigger = GCSPrefixBlobTrigger(
        bucket="artifacts",
        prefix=INCOMING,
        poke_interval=0.1,
        google_cloud_conn_id="google_cloud_default",
        hook_params={"impersonation_chain": None},
    )

    async def first_event() -> Any:
        events = trigger.run()
        waiting = asyncio.ensure_future(anext(events))
        done, _ = await asyncio.wait([waiting], timeout=0.5)
        assert not done, f"it fired on nothing: {waiting.result()}"
        await asyncio.to_thread(bucket().write, f"{INCOMING}sites.csv", HEADER + TANK)
        return await asyncio.wait_for(waiting, 20)

    event = asyncio.run(first_event())
    assert event.payload["status"] == "success", event.payload
    assert event.payload["matches"] == [f"{INCOMING}sites.csv"]
