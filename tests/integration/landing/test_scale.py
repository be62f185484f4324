"""A landing table with thousands of new files, as after an outage of the lane."""

import pytest

from include.streams.landing import index
from include.streams.landing.index import LandingIndex
from include.streams.landing.planning import claim_landed
from include.streams.landing.tables import load_landing_table
from include.streams.landing.verification import verify

pytestmark = pytest.mark.integration

FILES, COMMITS, ROWS = 2_000, 40, 500


def note_files(topic, commits: int, per_commit: int) -> None:
    """Commit data files to the table, `ROWS` offsets each, without writing them: because planning reads no data."""
    from pyiceberg.conversions import to_bytes
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
    from pyiceberg.typedef import Record
    from pyiceberg.types import LongType

    table = load_landing_table(topic)
    made = 0
    for _ in range(commits):
        with table.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
            for _ in range(per_commit):
                partition, first = made % topic.partitions, made // topic.partitions * ROWS
                path = f"{table.location()}/data/partition={partition}/{made:08d}.parquet"
                file = DataFile.from_args(
                    content=DataFileContent.DATA,
                    file_path=path,
                    file_format=FileFormat.PARQUET,
                    partition=Record(partition),
                    record_count=ROWS,
                    file_size_in_bytes=50_000,
                    lower_bounds={3: to_bytes(LongType(), first)},
                    upper_bounds={3: to_bytes(LongType(), first + ROWS - 1)},
                    spec_id=table.spec().spec_id,
                )
                append.append_data_file(file)
                made += 1


@pytest.fixture
def many(landed_topic):
    topic = landed_topic(partitions=4)
    note_files(topic, COMMITS, FILES // COMMITS)
    return topic


def pretend_log(monkeypatch, topic) -> None:
    """A log that ends where the files end, so that a million messages need not be produced."""
    from dataclasses import replace

    from include.streams.kafka.offsets import GroupOffsets

    real = GroupOffsets.fetch_offsets_sync
    end = FILES // topic.partitions * ROWS

    def fetch_offsets_sync(self, topics):
        return {partition: replace(offsets, end=end) for partition, offsets in real(self, topics).items()}

    monkeypatch.setattr(GroupOffsets, "fetch_offsets_sync", fetch_offsets_sync)


def test_two_thousand_files_become_no_more_units_than_airflow_maps(many, lane, monkeypatch):
    pretend_log(monkeypatch, many)
    units = claim_landed(lane(many, max_units=1_000), "run")
    assert len(units) == 1_000
    assert {len(unit["files"]) for unit in units} == {2}
    assert sum(r["end"] - r["start"] for unit in units for r in unit["ranges"]) == FILES * ROWS
    assert len({file["path"] for unit in units for file in unit["files"]}) == FILES


def test_a_second_check_reads_no_manifest_again(many, monkeypatch):
    assert verify(many).missing == ()
    monkeypatch.setattr(index, "file_range", None)
    assert len(LandingIndex(load_landing_table(many)).files(0, 0)) == FILES // 4
