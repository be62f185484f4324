"""Tables on a real S3 server: written, read by DuckDB and maintained; nothing is listed to find one object."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from s3fs import S3FileSystem

from include.streams.lake import catalog, datafiles, engine, maintenance, writing
from include.streams.lake.stores import store_in_use
from tests.integration.lake.test_tables import between, make_table, numbers, rows  # noqa: F401

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def warehouse_on_s3(landing_services, s3_services) -> Iterator[None]:
    connection = json.loads(os.environ["AIRFLOW_CONN_LANDING_CATALOG"])
    connection["extra"]["warehouse"] = "s3://landing/warehouse"
    catalog.forget_catalogs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_LANDING_CATALOG", json.dumps(connection))
        yield
    catalog.forget_catalogs()


def test_the_address_of_the_warehouse_selects_the_store():
    assert store_in_use().title == "Amazon S3"


def test_rows_are_written_replaced_and_read_by_duckdb(make_table):  # noqa: F811
    table = make_table()
    assert table.location().startswith("s3://landing/warehouse/")
    writing.replace_where(table, rows(0, 8, "old"), between(0, 8))
    writing.replace_where(table, rows(4, 10, "new"), between(4, 10))
    assert numbers(table) == list(range(10))
    assert numbers(table, row_filter=between(4, 6)) == [4, 5]


def test_duckdb_reads_a_large_file_in_the_store(make_table, monkeypatch):  # noqa: F811
    table = make_table()
    monkeypatch.setattr(engine, "SMALL_BYTES", 0)
    writing.replace_where(table, rows(0, 8), between(0, 8))
    assert numbers(table) == list(range(8))


@pytest.mark.parametrize("kept", [0, 3, -1])
def test_an_upload_that_the_store_does_not_keep_is_refused(make_table, kept):  # noqa: F811
    table = make_table()
    store = datafiles.filesystem(table.io, table.location())
    whole = b"PAR1 rows PAR1"
    address = f"{table.location()}/data/x.parquet"
    store.pipe_file(address, whole)
    datafiles.require_whole(store, {address: len(whole)})
    store.pipe_file(address, whole[:kept])
    with pytest.raises(OSError, match="the store does not hold all"):
        datafiles.require_whole(store, {address: len(whole)})


def test_a_file_larger_than_one_part_is_uploaded_and_read(make_table, tmp_path):  # noqa: F811
    table = make_table()
    store = datafiles.filesystem(table.io, table.location())
    local, back = tmp_path / "large", tmp_path / "back"
    local.write_bytes(os.urandom(1024) * 60 * 1024)
    address = f"{table.location()}/data/large"
    store.put_file(str(local), address)
    store.get([address], [str(back)])
    assert back.read_bytes() == local.read_bytes()


def test_maintenance_removes_what_no_snapshot_needs(make_table, monkeypatch):  # noqa: F811
    table = make_table()
    for first in (0, 4, 8):
        writing.replace_where(table, rows(first, first + 4), between(first, first + 4))
    writing.replace_where(table, rows(0, 4, "again"), between(0, 12))
    assert maintenance.expire_snapshots(table, timedelta(0)) > 0
    store = datafiles.filesystem(table.io, table.location())
    monkeypatch.setattr(maintenance, "ORPHAN_AGE", timedelta(seconds=-60))
    before = len(store.find(table.location()))
    assert maintenance.remove_unreferenced(table, older_than=timedelta(seconds=-60)) > 0
    assert len(store.find(table.location())) < before
    assert numbers(table) == [0, 1, 2, 3]


def test_objects_are_requested_by_name_and_never_listed(make_table, monkeypatch):  # noqa: F811
    requests: list[str] = []
    call = S3FileSystem._call_s3

    async def noting(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        requests.append(method)
        return await call(self, method, *arguments, **options)

    table = make_table()
    monkeypatch.setattr(S3FileSystem, "_call_s3", noting)
    writing.replace_where(table, rows(0, 4, "a"), between(0, 4))
    writing.replace_where(table, rows(1, 2, "b"), between(1, 2))
    assert numbers(table) == [0, 1, 2, 3]
    store = datafiles.filesystem(table.io, table.location())
    assert not store.exists(table.location()), "what only begins like an object's name is no object"
    assert requests
    assert not [method for method in requests if method.startswith("list")]
