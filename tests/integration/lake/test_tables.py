"""Tables on a real catalog and a real object store: reading, atomic replacement, and maintenance."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.manifest import ManifestEntryStatus
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import DayTransform
from pyiceberg.types import DoubleType, LongType, NestedField, StringType, TimestamptzType

from include.streams.lake import datafiles, engine, maintenance, writing
from include.streams.lake.catalog import load_catalog, refreshed
from include.streams.landing import upkeep

pytestmark = pytest.mark.integration

START = datetime(2026, 1, 1, tzinfo=UTC)
FIELDS = (
    NestedField(1, "number", LongType(), required=True),
    NestedField(2, "made_at", TimestamptzType(), required=True),
    NestedField(3, "note", StringType(), required=False),
)
SPEC = PartitionSpec(PartitionField(2, 1000, DayTransform(), "made_at_day"))


@pytest.fixture
def make_table(landing_services) -> Callable[..., Any]:
    name = f"test.t{uuid.uuid4().hex[:8]}"

    def make(*more: NestedField) -> Any:
        return writing.ensure_table(load_catalog(), name, Schema(*FIELDS, *more), SPEC)

    return make


def rows(first: int, end: int, note: str = "") -> pa.Table:
    """A row for each number, four rows per day."""
    schema = pa.schema(
        [
            pa.field("note", pa.string()),
            pa.field("number", pa.int64(), nullable=False),
            pa.field("made_at", pa.timestamp("us", "UTC"), nullable=False),
        ]
    )
    numbers = range(first, end)
    columns = {
        "number": numbers,
        "made_at": [START + n * timedelta(hours=6) for n in numbers],
        "note": [note] * len(numbers),
    }
    return pa.table(columns, schema=schema)


def between(first: int, end: int) -> str:
    return f"number >= {first} and number < {end}"


def found(table: Any, **options: Any) -> list[tuple]:
    with engine.connect() as connection:
        return sorted(engine.scan(connection, load_catalog().load_table(table.name()), **options).fetchall())


def numbers(table: Any, **options: Any) -> list[int]:
    return [number for (number,) in found(table, columns=["number"], **options)]


def test_rows_are_replaced_in_one_commit_and_a_repeat_changes_nothing(make_table):
    table = make_table()
    writing.replace_where(table, rows(0, 8, "old"), between(0, 8), {"claim-id": "1"})
    seen: list[list[int]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(numbers(table))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(2):
        writing.replace_where(table, rows(4, 10, "new"), between(4, 10), {"claim-id": "2"})
    stop.set()
    watcher.join()
    assert [(n, note) for n, _, note in found(table)] == [(n, "old" if n < 4 else "new") for n in range(10)]
    assert all(state in (list(range(8)), list(range(10))) for state in seen), "nobody sees half a replacement"
    snapshot = load_catalog().load_table(table.name()).current_snapshot()
    assert snapshot.summary["claim-id"] == "2"


def test_concurrent_writers_lose_and_duplicate_no_row(make_table):
    make_table()
    table = make_table()

    def write(first: int) -> None:
        mine = load_catalog().load_table(table.name())
        writing.replace_where(mine, rows(first, first + 4), between(first, first + 4))

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 0, 4, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(table) == list(range(12))


def test_a_commit_that_fails_leaves_the_table_as_it_was(make_table, monkeypatch):
    table = make_table()
    writing.replace_where(table, rows(0, 4), between(0, 4))

    def refuse(*_: Any, **__: Any) -> None:
        raise CommitFailedException("somebody else")

    monkeypatch.setattr(writing, "COMMIT_TRIES", 1)
    monkeypatch.setattr(type(table), "_do_commit", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(CommitFailedException):
        writing.replace_where(table, rows(0, 2), between(0, 4))
    assert numbers(table) == [0, 1, 2, 3]


def test_a_scan_reads_the_filtered_rows_and_columns_added_later(make_table):
    table = make_table()
    writing.replace_where(table, rows(0, 12), between(0, 12))
    assert numbers(table, row_filter="number > 2 and number <= 4") == [3, 4]
    day = "made_at >= '2026-01-02T00:00:00+00:00' and made_at < '2026-01-03T00:00:00+00:00'"
    assert numbers(table, row_filter=day) == [4, 5, 6, 7]
    assert numbers(table, row_filter="number > 100") == []
    wider = make_table(NestedField(4, "litres", DoubleType(), required=False))
    assert found(wider, row_filter="number = 1") == [(1, START + timedelta(hours=6), "", None)]
    assert found(wider, row_filter="number > 100") == []
    with pytest.raises(ValueError, match="litres"):
        make_table(NestedField(4, "litres", LongType(), required=False))


def test_small_files_become_one_and_no_row_changes(make_table):
    table = make_table()
    for number in range(4):
        writing.replace_where(table, rows(number, number + 1, "é"), between(number, number + 1))
    before = found(table)
    assert maintenance.bundle_small_files(table, min_files=8) == 0
    assert maintenance.bundle_small_files(table, min_files=2) == 4
    assert found(table) == before
    assert len(list(load_catalog().load_table(table.name()).scan().plan_files())) == 1
    # PyIceberg reads bundles too, and the lane can replace rows in a bundle.
    assert table.scan().to_arrow().num_rows == 4
    writing.replace_where(table, rows(1, 2, "new"), between(1, 2))
    assert [note for _, _, note in found(table)] == ["é", "new", "é", "é"]


def test_files_replaced_in_the_meantime_are_not_bundled(make_table, monkeypatch):
    table = make_table()
    for number in range(3):
        writing.replace_where(table, rows(number, number + 1), between(number, number + 1))
    upload = datafiles.upload

    def upload_late(*arguments: Any) -> Any:
        writing.replace_where(load_catalog().load_table(table.name()), rows(0, 1, "new"), between(0, 1))
        return upload(*arguments)

    monkeypatch.setattr(datafiles, "upload", upload_late)
    assert maintenance.bundle_small_files(table, min_files=2) == 0
    assert [note for _, _, note in found(table)] == ["new", "", ""]


def test_a_commit_during_the_bundling_is_kept(make_table, monkeypatch):
    table = make_table()
    for number in range(3):
        writing.replace_where(table, rows(number, number + 1), between(number, number + 1))
    upload = datafiles.upload

    def upload_late(*arguments: Any) -> Any:
        writing.replace_where(load_catalog().load_table(table.name()), rows(3, 4, "new"), between(3, 4))
        return upload(*arguments)

    monkeypatch.setattr(datafiles, "upload", upload_late)
    assert maintenance.bundle_small_files(table, min_files=2) == 3
    assert numbers(table) == [0, 1, 2, 3]


def test_old_snapshots_and_unreferenced_files_are_removed(make_table, monkeypatch):
    table = make_table()
    for note in ("first", "second", "third"):
        writing.replace_where(table, rows(0, 4, note), between(0, 4), {"note": note})
    before = len(table.snapshots())
    assert maintenance.expire_snapshots(table, timedelta(hours=1)) == 0
    needed = next(s for s in reversed(table.snapshots()) if s.summary["note"] == "second")
    maintenance.expire_snapshots(table, timedelta(0), lambda snapshot: snapshot.summary["note"] == "second")
    kept = load_catalog().load_table(table.name()).snapshots()
    assert len(kept) < before
    assert needed.snapshot_id in {s.snapshot_id for s in kept}

    store = datafiles.filesystem(table.io, table.location())
    stray = f"{table.location()}/data/stray.parquet"
    store.pipe_file(stray, b"x")
    with pytest.raises(ValueError, match="at least"):
        maintenance.remove_unreferenced(table, older_than=timedelta(hours=1))
    assert maintenance.remove_unreferenced(table) == 0, "they may belong to a commit that is under way"
    monkeypatch.setattr(maintenance, "ORPHAN_AGE", timedelta(seconds=-60))
    assert maintenance.remove_unreferenced(table, older_than=timedelta(seconds=-60)) > 1
    assert not store.exists(stray)
    assert [note for _, _, note in found(table)] == ["third"] * 4


def test_of_each_period_the_newest_snapshot_stays(make_table):
    table = make_table()
    for number in range(8):
        writing.replace_where(table, rows(0, 1, str(number)), between(0, 1))
    times = [snapshot.timestamp_ms for snapshot in table.snapshots()]
    # So that two snapshots are in one period even on a slow machine.
    period = (max(times) - min(times)) / 1000 / 4
    before: dict[int, set[int]] = {}
    for snapshot in table.snapshots():
        before.setdefault(int(snapshot.timestamp_ms / 1000 / period), set()).add(snapshot.snapshot_id)
    newest = {snapshot.snapshot_id: snapshot.timestamp_ms for snapshot in table.snapshots()}
    assert any(len(ids) > 1 for ids in before.values())

    thin = upkeep.thin_snapshots([".".join(table.name())], timedelta(0), timedelta(seconds=period))
    assert list(thin.values()) == [sum(len(ids) - 1 for ids in before.values())]
    table.refresh()
    assert {s.snapshot_id for s in table.snapshots()} == {max(ids, key=newest.__getitem__) for ids in before.values()}
    assert [note for _, _, note in found(table)] == ["7"]
    # There is nothing to expire, so there is no commit.
    where = table.metadata_location
    hours = {snapshot.timestamp_ms // 3_600_000 for snapshot in table.snapshots()}
    assert list(upkeep.thin_snapshots([".".join(table.name())], timedelta(0)).values()) == [len(before) - len(hours)]
    assert list(upkeep.thin_snapshots([".".join(table.name())]).values()) == [0]
    table.refresh()
    assert table.metadata_location != where
    where = table.metadata_location
    assert upkeep.thin_snapshots([".".join(table.name()), "clean.nothing"]) == {".".join(table.name()): 0}
    assert table.refresh().metadata_location == where
    with pytest.raises(ValueError, match="less than"):
        maintenance.thin_snapshots(table, timedelta(0), timedelta(days=1))


def test_two_processes_that_expire_the_same_snapshots_both_succeed(make_table, monkeypatch):
    table = make_table()
    for number in range(3):
        writing.replace_where(table, rows(0, 1, str(number)), between(0, 1))
    forget = maintenance._remove_snapshots

    def after_another(table: Any, old: list[int]) -> None:
        monkeypatch.setattr(maintenance, "_remove_snapshots", forget)
        forget(load_catalog().load_table(table.name()), old)
        forget(table, old)

    monkeypatch.setattr(maintenance, "_remove_snapshots", after_another)
    assert maintenance.expire_snapshots(table, timedelta(0)) == 0
    assert len(table.refresh().snapshots()) == 1


def test_a_commit_keeps_the_other_snapshots_of_the_table(make_table):
    table = make_table()
    for number in range(3):
        writing.replace_where(table, rows(0, 1, str(number)), between(0, 1))
    ids = {snapshot.snapshot_id for snapshot in table.snapshots()}
    replaced = [task.file for task in table.scan().plan_files()]
    writing.commit(table, lambda transaction: writing.replace_files(transaction, replaced, []))
    assert {snapshot.snapshot_id for snapshot in table.snapshots()} > ids
    assert {snapshot.snapshot_id for snapshot in table.refresh().snapshots()} > ids
    assert len(table.history()) == len(table.snapshots())


def test_a_failed_step_of_maintenance_stops_no_other(make_table, monkeypatch):
    table = make_table()
    name = ".".join(table.name())
    for number in range(3):
        writing.replace_where(table, rows(0, 1, str(number)), between(0, 1))
    store = datafiles.filesystem(table.io, table.location())
    store.pipe_file(f"{table.location()}/data/stray.parquet", b"x")
    age = timedelta(seconds=-60)
    monkeypatch.setattr(maintenance, "ORPHAN_AGE", age)
    monkeypatch.setattr(maintenance.remove_unreferenced, "__kwdefaults__", {"older_than": age, "spared": ()})

    def in_vain(_: Any) -> int:
        raise CommitFailedException("others commit all the time")

    monkeypatch.setattr(maintenance, "bundle_small_files", in_vain)
    with pytest.raises(upkeep.UpkeepFailed, match=f"table {name} not bundled: others commit all the time"):
        upkeep.maintain_table(name, timedelta(0))
    assert len(table.refresh().snapshots()) == 1
    assert not store.exists(f"{table.location()}/data/stray.parquet")


def test_files_deleted_by_another_process_are_no_error(make_table, monkeypatch):
    table = make_table()
    store = datafiles.filesystem(table.io, table.location())
    strays = [f"{table.location()}/data/stray-{n}.parquet" for n in range(20)]
    for stray in strays:
        store.pipe_file(stray, b"x")
    monkeypatch.setattr(maintenance, "ORPHAN_AGE", timedelta(seconds=-60))
    remove = type(store).rm_file

    def remove_twice(self: Any, path: str) -> None:
        remove(self, path)
        remove(self, path)

    monkeypatch.setattr(type(store), "rm_file", remove_twice)
    assert maintenance.remove_unreferenced(table, older_than=timedelta(seconds=-60)) == 20
    assert not any(store.exists(stray) for stray in strays)


def test_a_request_to_a_silent_store_times_out(make_table, monkeypatch):
    from aiohttp import ClientTimeout

    from include.streams.compat.objects import ObjectIO

    def hang(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                held.append(listening.accept()[0])

    held: list[socket.socket] = []
    # The timeout for a whole request; gcsfs retries after the other timeouts, for a minute.
    monkeypatch.setattr("include.streams.compat.google_objects.TIMEOUT", ClientTimeout(total=1))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=hang, args=[listening], daemon=True).start()
        host = f"http://127.0.0.1:{listening.getsockname()[1]}"
        properties = {"gcs.oauth2.token": "anon", "gcs.service.host": host, "gcs.project-id": "test"}
        read = threading.Thread(target=lambda: ends.append(_raised(ObjectIO(properties), "gs://b/x")), daemon=True)
        ends: list[Exception | None] = []
        read.start()
        read.join(30)
        assert not read.is_alive(), "it waits for ever"
        listening.shutdown(socket.SHUT_RDWR)
    assert isinstance(ends[0], TimeoutError)
    assert held


def test_settings_of_the_store_in_the_connections_extra_are_used():
    from include.streams.compat.objects import ObjectIO

    more = {"gcs.requester-pays": "true", "gcs.session-kwargs": '{"trust_env": true}', "gcs.access": "read_only"}
    store = ObjectIO({"gcs.oauth2.token": "anon", "gcs.project-id": "test", **more}).get_fs("gs")
    assert store.requester_pays
    assert store.session_kwargs["trust_env"]
    assert store.credentials.access == "read_only"


def _raised(io: Any, address: str) -> Exception | None:
    try:
        io.new_input(address).open()
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("kept", [0, 3, -1])
def test_an_upload_that_the_store_does_not_keep_is_not_committed(make_table, monkeypatch, tmp_path, kept):
    table = make_table()
    store = datafiles.filesystem(table.io, table.location())
    put = store.put

    def put_less(paths: list[str], addresses: list[str], **options: Any) -> None:
        put(paths, addresses, **options)
        store.pipe_file(addresses[-1], store.cat_file(addresses[-1])[:kept])

    with engine.connect() as connection:
        connection.register("made", rows(0, 4))
        local = datafiles.write(connection, "select number, made_at, note from made", table, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(store, "put", put_less)
        with pytest.raises(OSError, match="the store does not hold all"):
            datafiles.upload(table, local)
    assert len(datafiles.upload(table, local)) == len(local)


def without(connection: Any, table: Any, condition: str) -> datafiles.Removal:
    return datafiles.prepare_removal(
        connection,
        table,
        engine.files_where(table, condition),
        lambda rows: rows.filter(condition),
        lambda rows: rows.filter(f"not ({condition})"),
    )


def test_rows_are_removed_and_the_other_rows_of_their_files_stay(make_table):
    table = make_table()
    for first in range(0, 12, 3):
        table.append(rows(first, first + 3))
    untouched = {task.file.file_path for task in table.scan(between(9, 12)).plan_files()}

    def change(transaction: Any) -> None:
        with engine.connect() as connection:
            before = without(connection, table, between(2, 8))
        assert before.rows == 6
        writing.replace_files(transaction, before.old, before.rest)

    writing.commit(table, change)
    assert [number for number, *_ in found(table)] == [0, 1, 8, 9, 10, 11]
    assert untouched <= {task.file.file_path for task in table.scan().plan_files()}
    with engine.connect() as connection:
        nothing = without(connection, table, between(100, 200))
    assert (nothing.old, nothing.rest, nothing.rows) == ([], [], 0)


def replace_day(table: Any, note: str, tmp_path: Path, first: int = 0) -> None:
    """Replace a file as a run of the lane does: here the file with the day's four rows."""

    def change(transaction: Any) -> None:
        old = [task.file for task in table.scan(between(first, first + 4)).plan_files()]
        with engine.connect() as connection:
            connection.register("made", rows(first, first + 4, note))
            folder = tmp_path / uuid.uuid4().hex
            folder.mkdir()
            local = datafiles.write(connection, "select number, made_at, note from made", table, folder)
        writing.replace_files(transaction, old, datafiles.upload(table, local))

    writing.commit(table, change)


def test_commits_that_replace_files_leave_few_manifests(make_table, tmp_path):
    table = make_table()
    with table.transaction() as transaction:
        transaction.set_properties({"commit.manifest.min-count-to-merge": "4"})
    table.refresh()
    for day in range(6):
        table.append(rows(4 * day, 4 * day + 4, "old"))
    for number in range(12):
        replace_day(table, f"note {number}", tmp_path, first=4 * (number % 3))
    manifests = table.current_snapshot().manifests(table.io)
    # One manifest of the files that the last commit replaced, and fewer than the number that is merged.
    assert len(manifests) <= 4
    assert [note for _, _, note in found(table)] == [
        *["note 9"] * 4,
        *["note 10"] * 4,
        *["note 11"] * 4,
        *["old"] * 12,
    ]
    assert table.current_snapshot().summary["total-records"] == "24"
    # The last commit records the replaced files, for readers of changes.
    deleted = [
        entry.data_file
        for manifest in manifests
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=False)
        if entry.status == ManifestEntryStatus.DELETED
    ]
    assert [file.record_count for file in deleted] == [4]
    # Readers by sequence number find each file at its own commit, also in merged manifests.
    numbers_of = {snapshot.snapshot_id: snapshot.sequence_number for snapshot in table.snapshots()}
    live = [entry for manifest in manifests for entry in manifest.fetch_manifest_entry(table.io)]
    assert len(live) == 6
    for entry in live:
        assert entry.sequence_number == entry.file_sequence_number == numbers_of[entry.snapshot_id]
    assert len({entry.snapshot_id for entry in live}) == 6


def test_a_table_may_have_a_column_named_like_a_duckdb_keyword(make_table):
    table = make_table(NestedField(4, "filename", StringType(), required=False))
    table.append(rows(0, 4).append_column("filename", pa.array(["a"] * 4)).select(table.schema().as_arrow().names))
    with engine.connect() as connection:
        before = without(connection, table, between(1, 2))
    assert before.rows == 1
    writing.commit(table, lambda transaction: writing.replace_files(transaction, before.old, before.rest))
    assert numbers(table) == [0, 2, 3]


def test_objects_are_requested_by_name_and_never_listed(make_table, monkeypatch):
    from gcsfs import GCSFileSystem

    requests: list[tuple[str, str]] = []
    call = GCSFileSystem._call

    async def noting(self: Any, method: str, path: str, *args: Any, **options: Any) -> Any:
        requests.append((method, path))
        return await call(self, method, path, *args, **options)

    table = make_table()
    monkeypatch.setattr(GCSFileSystem, "_call", noting)
    writing.replace_where(table, rows(0, 4, "a"), between(0, 4))
    writing.replace_where(table, rows(1, 2, "b"), between(1, 2))
    assert numbers(table) == [0, 1, 2, 3]
    assert requests
    # A listing is a GET of the bucket's objects, without the name of an object.
    assert [path for method, path in requests if method == "GET" and path.endswith("/o")] == []

    store = datafiles.filesystem(table.io, table.location())
    assert not store.exists(table.location()), "what only begins like an object's name is no object"
    listed = store.find(table.location())
    store.rm_file(listed[0])
    assert not store.exists(listed[0]), "a listing of before is not believed"


def test_a_table_rereads_its_metadata_only_after_a_commit_of_another(make_table, monkeypatch):
    table, other = make_table(), make_table()
    # Imported after the catalog, which sets an environment variable that gcsfs reads at its import.
    from include.streams.compat import objects

    read: list[str] = []
    open_input = objects.ObjectIO.new_input

    def noted(io: Any, location: str) -> Any:
        read.append(location)
        return open_input(io, location)

    writing.replace_where(table, rows(0, 4), between(0, 4))
    monkeypatch.setattr(objects.ObjectIO, "new_input", noted)
    assert refreshed(table).current_snapshot() is not None
    assert read == []
    assert refreshed(other).current_snapshot() == table.current_snapshot()
    assert read == [table.metadata_location]
    writing.replace_where(other, rows(4, 8), between(4, 8))
    assert refreshed(table).current_snapshot() == other.current_snapshot()
    assert table.metadata_location == other.metadata_location
