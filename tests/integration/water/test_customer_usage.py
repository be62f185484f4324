"""Customers' usage on a real table, object store and register: what a run writes, also after kills and late runs."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.exceptions import NoSuchTableError
from sqlalchemy import delete, insert

from include.streams.lake.buckets import ABSENT, Bucket, GenerationChanged, bucket
from include.streams.lake.catalog import load_catalog
from include.streams.lake.writing import replace_where
from include.streams.operations.database import begin
from include.streams.operations.migrate import upgrade
from include.water.flows.definition import TIME_ZONE
from include.water.flows.tables import METER_HOURS, schema_of, spec_of
from include.water.tables import register_customers
from include.water.usage import objects, publish
from include.water.usage.documents import FOLDER, content_hash
from include.water.usage.manifest import PATH, Manifest, load
from include.water.usage.objects import NewerObject, delete_object, write_object
from include.water.usage.publish import PublishedMeanwhile, next_turn, publish_usage
from include.water.usage.tables import CUSTOMER_DAYS

pytestmark = pytest.mark.integration

NOW = datetime(2026, 11, 22, 21, tzinfo=UTC)
FIRST = datetime(2026, 11, 19, 8, tzinfo=UTC)  # midnight of the 19th
HOURS = 24 * 3 + 13
CUSTOMERS = 24


@pytest.fixture(scope="module", autouse=True)
def operations(landing_services) -> None:
    upgrade()


@pytest.fixture
def flows(operations) -> Iterator[Any]:
    """`water.meter_hours` with three days and part of a fourth, a register of customers, and no publication yet."""
    catalog = load_catalog()
    for name in (METER_HOURS, CUSTOMER_DAYS):
        with suppress(NoSuchTableError):
            catalog.drop_table(name)
    catalog.create_namespace_if_not_exists("water")
    table = catalog.create_table(METER_HOURS, schema_of(METER_HOURS), partition_spec=spec_of(METER_HOURS))
    chance = random.Random(1)
    table.append(hours((n, number, chance.uniform(0, 30)) for n in range(CUSTOMERS) for number in range(HOURS)))
    register(range(CUSTOMERS))
    remote = bucket()
    for entry in remote.list("usage/"):
        remote.delete(entry.path)
    yield table
    catalog.drop_table(METER_HOURS)
    with begin() as connection:
        connection.execute(delete(register_customers))


def hours(rows: Iterable[tuple[int, int, float]]) -> pa.Table:
    found = [
        {
            "meter_id": f"M-{customer:06d}",
            "district_id": "harbour",
            "hour": FIRST + timedelta(hours=number),
            "litres": round(litres, 2),
            "readings": 1,
            "expected_readings": 1,
        }
        for customer, number, litres in rows
    ]
    return pa.Table.from_pylist(found, schema_of(METER_HOURS).as_arrow())


def register(customers: Iterable[int], uploaded_at: datetime = NOW) -> None:
    with begin() as connection:
        connection.execute(delete(register_customers))
        rows = [
            {
                "customer_id": f"C-{n:06d}",
                "meter_id": f"M-{n % 1000:06d}",
                "district_id": "harbour",
                "persons": 2,
                "object_name": "register/incoming/customers.csv",
                "generation": 1,
                "uploaded_at": uploaded_at,
            }
            for n in customers
        ]
        if rows:
            connection.execute(insert(register_customers), rows)


def published() -> dict[str, int]:
    """Generations of the customers' objects, by customer."""
    entries = bucket().list(f"{FOLDER}/")
    return {entry.path.removeprefix(f"{FOLDER}/").removesuffix(".json"): entry.generation for entry in entries}


def document(number: int) -> dict[str, Any]:
    stored = bucket().read(f"{FOLDER}/C-{number:06d}.json")
    assert stored
    return json.loads(stored[0])


def customer_days() -> list[dict[str, Any]]:
    rows = load_catalog().load_table(CUSTOMER_DAYS).scan().to_arrow().to_pylist()
    return sorted(rows, key=lambda row: (row["day"], row["customer_id"]))


def snapshots() -> int:
    return len(load_catalog().load_table(CUSTOMER_DAYS).snapshots())


def test_customers_get_objects_and_rows_and_a_second_run_none(flows, caplog):
    with caplog.at_level(logging.DEBUG, logger="include"):
        result = publish_usage(now=NOW)
    assert result == {"customers": CUSTOMERS, "days_written": 4, "written": CUSTOMERS, "removed": 0}
    assert "C-0000" not in caplog.text
    assert sorted(published()) == [f"C-{n:06d}" for n in range(CUSTOMERS)]
    rows = customer_days()
    assert len(rows) == 4 * CUSTOMERS
    assert [row["complete"] for row in rows[::CUSTOMERS]] == [True, True, True, False]
    of_one = document(7)
    own_rows = [row for row in rows if row["customer_id"] == "C-000007"]
    assert [day["litres"] for day in of_one["days"]] == [round(row["litres"]) for row in reversed(own_rows)]
    assert [day["complete"] for day in of_one["days"]] == [False, True, True, True]
    assert of_one["days"][0]["like_households"] is None
    assert of_one["days"][1]["like_households"]["households_at_least"] == 20
    before = published(), snapshots(), bucket().read(PATH)
    assert "skipped" in publish_usage(now=NOW + timedelta(minutes=20))
    # A compacted table has another snapshot and the same rows.
    flows.overwrite(flows.scan().to_arrow())
    assert publish_usage(now=NOW) == {"customers": CUSTOMERS, "days_written": 0, "written": 0, "removed": 0}
    assert (published(), snapshots()) == before[:2]


def test_late_readings_rewrite_their_day_and_its_objects(flows):
    publish_usage(now=NOW)
    before, rows = published(), customer_days()
    read_again(flows, 3, 30, 500.0)
    result = publish_usage(now=NOW)
    assert result["days_written"] == 1
    changed = {customer for customer, generation in published().items() if generation != before[customer]}
    assert "C-000003" in changed
    assert result["written"] == len(changed)
    after = customer_days()
    different = {
        (a["customer_id"], a["day"].day) for a, b in zip(after, rows, strict=True) if a["litres"] != b["litres"]
    }
    assert different == {("C-000003", 20)}
    assert document(3)["days"][2]["litres"] > 500


@pytest.mark.parametrize("point", ["before the manifest is first saved", "between the objects", "after all objects"])
def test_a_retry_finishes_a_killed_run(flows, point: str, monkeypatch):
    store = type(bucket())
    real, written = store.write, []

    class Killed(BaseException):
        pass

    def dies(self: Bucket, path: str, *args, **kwargs) -> int:
        manifests = written.count(PATH)
        dying = {
            "before the manifest is first saved": path == PATH,
            "between the objects": manifests >= 1 and len(written) > 12,
            "after all objects": path == PATH and manifests == 4,
        }
        if dying[point]:
            raise Killed
        generation = real(self, path, *args, **kwargs)
        written.append(path)
        return generation

    monkeypatch.setattr(objects, "BATCH", 10)
    with monkeypatch.context() as patch:
        patch.setattr(store, "write", dies)
        with pytest.raises(Killed):
            publish_usage(now=NOW)
    before = published()
    assert publish_usage(now=NOW)["customers"] == CUSTOMERS
    assert len(published()) == CUSTOMERS
    # Objects that were written are not written again, recorded or not.
    assert before.items() <= published().items()
    assert len(customer_days()) == 4 * CUSTOMERS
    assert "skipped" in publish_usage(now=NOW)


def test_a_late_run_does_not_overwrite_newer_usage(flows):
    publish_usage(now=NOW)
    remote = bucket()
    newer, stale = document(1), {**document(1), "days": []}
    stored = remote.read(f"{FOLDER}/C-000001.json")
    assert stored
    with pytest.raises(NewerObject):
        write_object(remote, "C-000001", stale, newer["as_of"] - 1, known=stored[1] - 1)
    assert document(1) == newer
    # With newer flows, it replaces an object that is not in its manifest.
    write_object(remote, "C-000001", stale, newer["as_of"] + 1, known=0)
    assert document(1)["days"] == []


def test_every_publication_has_a_higher_number(flows):
    publish_usage(now=NOW)
    first = document(1)["as_of"]
    register([*range(1, CUSTOMERS), 5000])
    publish_usage(now=NOW)
    second = document(5000)["as_of"]
    assert second > first
    # The table of flows is recreated, so its snapshots start again; and the clock goes back.
    rows = flows.scan().to_arrow()
    load_catalog().drop_table(METER_HOURS)
    table = load_catalog().create_table(METER_HOURS, schema_of(METER_HOURS), partition_spec=spec_of(METER_HOURS))
    table.append(rows)
    read_again(table, 3, 30, 500.0)
    publish_usage(now=NOW - timedelta(minutes=1))
    assert document(3)["as_of"] > second


@pytest.mark.parametrize("moment", ["before its objects", "between its objects"])
def test_a_late_run_of_the_same_flows_does_not_overwrite_usage(flows, moment: str, monkeypatch):
    publish_usage(now=NOW)
    read_again(flows, 3, 30, 500.0)
    newer: dict[str, Any] = {}
    where, name = (publish, "write_objects") if moment == "before its objects" else (objects, "write_object")
    real = getattr(where, name)

    def stalls(*args: Any) -> Any:
        monkeypatch.setattr(where, name, real)
        # With one household less in the comparison, every object differs.
        register(range(1, CUSTOMERS))
        publish_usage(now=NOW)
        newer.update({f"C-{n:06d}": document(n) for n in range(1, CUSTOMERS)})
        return real(*args)

    monkeypatch.setattr(objects, "MAX_WRITERS", 1)
    monkeypatch.setattr(where, name, stalls)
    with pytest.raises((NewerObject, GenerationChanged)):
        publish_usage(now=NOW)
    assert {f"C-{n:06d}": document(n) for n in range(1, CUSTOMERS)} == newer
    assert published().keys() == newer.keys()
    assert "skipped" in publish_usage(now=NOW)


def test_the_next_run_corrects_objects_that_a_late_run_wrote(flows):
    publish_usage(now=NOW)
    remote, before = bucket(), {n: document(n) for n in range(CUSTOMERS)}
    number = load(remote).publication
    write_object(remote, "C-000001", {**before[1], "days": []}, number + 1, known=published()["C-000001"])
    write_object(remote, "C-000900", before[1], number, known=ABSENT)
    remote.delete(f"{FOLDER}/C-000002.json")
    remote.write(f"{FOLDER}/readme.txt", b"somebody else's")
    # Another snapshot with the same rows.
    flows.overwrite(flows.scan().to_arrow())
    later = NOW + timedelta(minutes=15)
    assert publish_usage(now=later) == {"customers": CUSTOMERS, "days_written": 0, "written": 2, "removed": 1}
    assert {n: content_hash(document(n)) for n in range(CUSTOMERS)} == {n: content_hash(before[n]) for n in before}
    assert published().keys() == {*(f"C-{n:06d}" for n in range(CUSTOMERS)), "readme.txt"}
    remote.delete(f"{FOLDER}/readme.txt")


def test_a_late_run_deletes_no_newer_object(flows):
    publish_usage(now=NOW)
    remote, known = bucket(), published()["C-000001"]
    number = document(1)["as_of"]
    newer = write_object(remote, "C-000001", {**document(1), "days": []}, number + 2, known=known)
    with pytest.raises(GenerationChanged):
        delete_object(remote, "C-000001", number + 1, known, known)
    with pytest.raises(NewerObject):
        delete_object(remote, "C-000001", number + 1, known, newer)
    assert document(1)["days"] == []
    delete_object(remote, "C-000001", number + 3, known, newer)
    assert "C-000001" not in published()
    delete_object(remote, "C-000001", number + 3, known, newer)


def test_a_killed_publication_does_not_count_as_the_one_before(flows, monkeypatch):
    publish_usage(now=NOW)
    before = customer_days()
    register(range(1, CUSTOMERS))

    class Killed(BaseException):
        pass

    def dies(*_) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(publish, "write_objects", dies)
        with pytest.raises(Killed):
            publish_usage(now=NOW)
    assert customer_days() != before
    # Its inputs are unchanged.
    register(range(CUSTOMERS))
    publish_usage(now=NOW)
    assert customer_days() == before


def read_again(flows: Any, customer: int, number: int, litres: float) -> None:
    """Change the flow of a customer's hour."""
    moment = (FIRST + timedelta(hours=number)).isoformat()
    replace_where(flows, hours([(customer, number, litres)]), f"meter_id == 'M-{customer:06d}' and hour == '{moment}'")


@pytest.mark.parametrize("newer", ["flows", "register", "flows as they were"])
def test_a_late_run_does_not_restore_old_days(flows, newer: str, monkeypatch):
    publish_usage(now=NOW)
    at_first = flows.scan(f"meter_id == 'M-000003' and hour == '{(FIRST + timedelta(hours=30)).isoformat()}'")
    (litres,) = at_first.to_arrow()["litres"].to_pylist()
    before = customer_days()
    read_again(flows, 3, 30, 500.0)
    real = publish._compute

    def stalls(*args):
        usage = real(*args)
        monkeypatch.setattr(publish, "_compute", real)
        if newer == "flows":
            read_again(flows, 3, 30, 900.0)
        elif newer == "flows as they were":
            read_again(flows, 3, 30, litres)
        else:
            register(range(1, CUSTOMERS))
        publish_usage(now=NOW)
        return usage

    monkeypatch.setattr(publish, "_compute", stalls)
    with pytest.raises(PublishedMeanwhile):
        publish_usage(now=NOW)
    after = customer_days()
    (day,) = [row["litres"] for row in after if (row["customer_id"], row["day"].day) == ("C-000003", 20)]
    assert (day > 900) == (newer == "flows")
    assert ("C-000000" in {row["customer_id"] for row in after}) == (newer != "register")
    assert (after == before) == (newer == "flows as they were")
    assert "skipped" in publish_usage(now=NOW)
    assert customer_days() == after


def test_unrecorded_objects_of_a_killed_run_are_replaced(flows, monkeypatch):
    publish_usage(now=NOW)
    before = customer_days()
    register(range(CUSTOMERS + 1))

    class Killed(BaseException):
        pass

    def dies(*_) -> None:
        raise Killed

    flows.append(hours((CUSTOMERS, number, 5.0) for number in range(HOURS)))
    with monkeypatch.context() as patch:
        patch.setattr(publish, "write_objects", dies)
        with pytest.raises(Killed):
            publish_usage(now=NOW)
    assert len(customer_days()) == len(before) + 4
    # The customer leaves again before the retry, whose documents are those of the manifest.
    register(range(CUSTOMERS))
    publish_usage(now=NOW)
    assert customer_days() == before


def test_after_an_older_release_every_day_is_written_once(flows):
    publish_usage(now=NOW)
    rows = customer_days()
    # The older release has written rows without the hashes in the table's properties, and its record is in the
    # manifest.
    load_catalog().load_table(CUSTOMER_DAYS).delete("day == '2026-11-20'")
    manifest = load(bucket())
    manifest.days, manifest.source = {row["day"].isoformat(): "of an older release" for row in rows}, None
    manifest.save(bucket())
    assert publish_usage(now=NOW)["days_written"] > 0
    assert customer_days() == rows
    assert load(bucket()).days == {}
    read_again(flows, 3, 30, 500.0)
    assert publish_usage(now=NOW)["days_written"] == 1


def test_of_two_concurrent_runs_one_saves_the_manifest(flows):
    first, second = Manifest(), Manifest()
    first.save(bucket())
    with pytest.raises(GenerationChanged):
        second.save(bucket())


def test_a_new_customer_sees_no_day_of_the_one_who_left(flows):
    publish_usage(now=NOW)
    register([*range(1, CUSTOMERS), 5000])  # C-005000 takes over the meter of C-000000
    result = publish_usage(now=NOW)
    assert result["removed"] == 1
    assert "C-000000" not in published()
    assert [day["day"] for day in document(5000)["days"]] == [NOW.astimezone(TIME_ZONE).date().isoformat()]
    assert {row["customer_id"] for row in customer_days()} == {*(f"C-{n:06d}" for n in range(1, CUSTOMERS)), "C-005000"}


def test_a_silent_leaking_meter_does_not_stop_the_publication(flows):
    # Its last hours are on the two days before the first computed day.
    silent = CUSTOMERS
    flows.append(hours((silent, number, 5.0) for number in range(-33 * 24, -33 * 24 + 30)))
    register(range(CUSTOMERS + 1))
    assert publish_usage(now=NOW) == {
        "customers": CUSTOMERS + 1, "days_written": 4, "written": CUSTOMERS, "removed": 0
    }  # fmt: skip
    # Two days earlier, they were shown.
    assert publish_usage(now=NOW - timedelta(days=2))["written"] > 0
    assert [day["continuous_flow"] for day in document(silent)["days"]] == [True, True]
    assert document(silent)["continuous_flow"] is None


def test_without_a_register_or_flows_nothing_is_published(flows):
    register([])
    assert "register" in publish_usage(now=NOW)["skipped"]
    assert published() == {}


def test_a_run_waits_for_the_interval_and_an_outdated_run_is_skipped(flows):
    assert next_turn(NOW, now=NOW) == NOW
    publish_usage(now=NOW)
    assert next_turn(NOW - timedelta(minutes=1), now=NOW) is None
    later = NOW + timedelta(minutes=5)
    assert next_turn(later, now=later) == NOW + timedelta(minutes=15)
    assert next_turn(later, now=NOW + timedelta(hours=2)) == NOW + timedelta(hours=2)
