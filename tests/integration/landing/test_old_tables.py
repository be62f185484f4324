"""A large landing table: what a check, a plan and maintenance read, and what they must not delete."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from include.streams.kafka.offsets import GroupOffsets, Partition
from include.streams.lake import catalog, maintenance
from include.streams.landing import index, upkeep
from include.streams.landing.connectors import control_topic, coordinator_group
from include.streams.landing.index import LandingIndex
from include.streams.landing.planning import claim_landed
from include.streams.landing.readiness import Lane, Readiness, check_readiness
from include.streams.landing.tables import load_landing_table
from tests.integration.landing.conftest import finish, land, landed_rows, offsets_of, rows
from tests.integration.landing.test_scale import note_files

pytestmark = pytest.mark.integration

NOW = timedelta(0)


def lane_of(consumer) -> Lane:
    return Lane(consumer.name, consumer.topic.name, "run", consumer.conn_id, 0.0, 3600.0)


def count_reads(monkeypatch) -> list[str]:
    """The manifests that are opened after this."""
    from pyiceberg.manifest import ManifestFile

    read: list[str] = []
    fetch = ManifestFile.fetch_manifest_entry

    def counting(self, io, discard_deleted=True):
        read.append(self.manifest_path)
        return fetch(self, io, discard_deleted)

    monkeypatch.setattr(ManifestFile, "fetch_manifest_entry", counting)
    return read


def new_process(monkeypatch) -> None:
    """Clear the caches of tables and manifests, as in a new process."""
    index.clear_caches()
    monkeypatch.setattr(catalog, "_current", {})


def test_a_new_process_opens_only_manifests_beyond_its_offsets(landed_topic, lane, monkeypatch):
    topic = landed_topic(partitions=2)
    note_files(topic, commits=12, per_commit=2)
    end = LandingIndex(load_landing_table(topic)).end(0)
    new_process(monkeypatch)
    read = count_reads(monkeypatch)
    files = LandingIndex(load_landing_table(topic)).files(0, end - 500)
    assert [file.end for file in files] == [end]
    assert len(read) == 1


def test_missing_bounds_of_manifests_are_read_again(landed_topic, operations, monkeypatch):
    from include.streams.landing import manifests

    topic = landed_topic(partitions=2)
    note_files(topic, commits=3, per_commit=2)
    before = LandingIndex(load_landing_table(topic)).files(1, 0)
    table = load_landing_table(topic)
    assert manifests.delete_others(str(table.metadata.table_uuid), ()) == 3
    new_process(monkeypatch)
    assert LandingIndex(load_landing_table(topic)).files(1, 0) == before


def test_a_check_without_a_new_commit_reads_nothing_from_the_store(landed_topic, lane, send_orders, monkeypatch):
    topic = landed_topic(partitions=1)
    consumer = lane(topic)
    send_orders(topic, 0, 2)
    assert check_readiness(lane_of(consumer), verify_too=False) is Readiness.no_data
    with monkeypatch.context() as patch:
        patch.setattr("pyiceberg.io.fsspec.FsspecFileIO.new_input", lambda *_: pytest.fail("the store was read"))
        assert check_readiness(lane_of(consumer), verify_too=False) is Readiness.no_data
    land(topic, 0, range(2))
    assert check_readiness(lane_of(consumer), verify_too=False) is Readiness.ready


def as_sink(topic, partition: int, offsets) -> None:
    """A commit with the property by which the sink finds its own."""
    load_landing_table(topic).append(rows(topic, partition, offsets), snapshot_properties={"kafka.connect.x": "1"})


def test_expiry_of_snapshots_loses_no_landed_row(landed_topic, lane, send_orders):
    topic = landed_topic(partitions=1)
    send_orders(topic, 0, 6)
    for offset in range(6):
        as_sink(topic, 0, [offset])
    kept = upkeep.expire_landing_snapshots([topic], timedelta(days=1))
    assert list(kept.values()) == [0]
    assert list(upkeep.expire_landing_snapshots([topic], NOW).values()) == [5]
    assert len(load_landing_table(topic).snapshots()) == 1
    assert offsets_of(claim_landed(lane(topic), "run")) == [(0, offset) for offset in range(6)]


def test_thousands_of_snapshots_expire_in_one_commit(landed_topic, monkeypatch):
    topic = landed_topic(partitions=1)
    for offset in range(7):
        as_sink(topic, 0, [offset])
    monkeypatch.setattr(maintenance, "EXPIRED_AT_ONCE", 2)
    before = load_landing_table(topic).metadata_location
    upkeep.expire_landing_snapshots([topic], NOW)
    table = load_landing_table(topic)
    assert len(table.snapshots()) == 1
    assert table.metadata.metadata_log[-1].metadata_file == before


def test_old_tables_get_the_properties_that_keep_them_small(landed_topic):
    topic = landed_topic(partitions=1)
    setting = "commit.manifest.target-size-bytes"
    with load_landing_table(topic).transaction() as transaction:
        transaction.remove_properties(setting)
    assert setting not in load_landing_table(topic).properties
    upkeep.expire_landing_snapshots([topic], NOW)
    assert setting in load_landing_table(topic).properties


def test_files_that_every_lane_has_finished_are_bundled(landed_topic, lane, send_orders):
    topic = landed_topic(partitions=2)
    fast, slow = lane(topic), lane(topic)
    for partition in (0, 1):
        send_orders(topic, partition, 20)
        for first in range(0, 20, 2):
            land(topic, partition, range(first, first + 2))
    before = landed_rows(topic)
    finish(claim_landed(fast, "run"))
    assert upkeep.maintain_landing_table(topic, [fast, slow]) == {"bundled": 0, "removed": 0}
    units = claim_landed(slow, "run")
    assert upkeep.maintain_landing_table(topic, [fast, slow]) == {"bundled": 0, "removed": 0}, "its claim is open"
    finish(units)
    assert upkeep.maintain_landing_table(topic, [fast, slow]) == {"bundled": 20, "removed": 0}
    assert landed_rows(topic) == before
    files = LandingIndex(load_landing_table(topic)).files(0, 0)
    assert [(file.start, file.end, file.is_dense) for file in files] == [(0, 20, True)]
    # A lane that begins later finds everything.
    assert offsets_of(claim_landed(lane(topic), "run")) == [(p, offset) for p in (0, 1) for offset in range(20)]


def test_files_with_a_repeated_and_a_missing_offset_are_not_bundled(landed_topic, send_orders):
    topic = landed_topic(partitions=1)
    # Offset 9 is missing, and 8 occurs twice, so there are as many rows as the bounds span.
    for offset in (*range(9), 8, *range(10, 18)):
        land(topic, 0, [offset])
    upkeep.maintain_landing_table(topic, [])
    landed_now = LandingIndex(load_landing_table(topic))
    assert landed_now.covered(0, 0) == [(0, 9), (10, 18)]
    # Files that hold a record twice are not bundled either.
    other = landed_topic(partitions=1)
    for offset in range(8):
        land(other, 0, [offset])
    land(other, 0, [8, 10, 10, 11])
    upkeep.maintain_landing_table(other, [])
    assert (9, 10) not in LandingIndex(load_landing_table(other)).covered(0, 0)
    assert sum(file.records for file in LandingIndex(load_landing_table(other)).files(0, 0)) == 12


def put_orphan(topic, name: str) -> str:
    """A file that no snapshot refers to, old enough to be deleted."""
    from include.streams.lake.datafiles import filesystem

    table = load_landing_table(topic)
    address = f"{table.location()}/data/partition=0/{name}"
    filesystem(table.io, address).pipe_file(address, b"x")
    return address


def test_files_that_a_late_coordinator_will_commit_are_not_deleted(landed_topic, make_topic, admin, send, monkeypatch):
    from confluent_kafka.admin import NewTopic

    from include.streams.lake.datafiles import filesystem

    topic = landed_topic(partitions=1)
    named, done, unknown = (f"00001-{uuid.uuid4()}-00001.parquet" for _ in range(3))
    addresses = {name: put_orphan(topic, name) for name in (named, done, unknown)}
    admin.create_topics([NewTopic(control_topic(topic), 1, 1)])[control_topic(topic)].result(30)
    send(control_topic(topic), *(b"\xc3\x01\x02avro" + addresses[name].encode() + b"\x00" for name in (done, named)))
    monkeypatch.setattr(maintenance, "ORPHAN_AGE", NOW)
    monkeypatch.setattr(maintenance.remove_unreferenced, "__kwdefaults__", {"older_than": NOW, "spared": ()})
    # If a coordinator has no committed offset, its last commit is not known.
    assert upkeep.maintain_landing_table(topic)["removed"] is None  # type: ignore[index]
    with GroupOffsets(coordinator_group(topic)) as group:
        group.commit({Partition(control_topic(topic), 0): 1})
    assert upkeep.maintain_landing_table(topic)["removed"] == 2  # type: ignore[index]
    store = filesystem(load_landing_table(topic).io, addresses[named])
    assert [store.exists(addresses[name]) for name in (named, done, unknown)] == [True, False, False]
