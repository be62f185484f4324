"""Records with odd timestamps and header names stop neither repair nor a run of the standard lane."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from benchmarks.wire import RawRecord
from include.streams.landing.balance import finish
from include.streams.landing.clean import commit_clean
from include.streams.landing.planning import claim_landed
from include.streams.landing.repair import repair
from include.streams.landing.tables import load_landing_table
from include.streams.landing.validation import validate_unit
from include.streams.landing.verification import verify
from tests.integration.kafka.conftest import order, read_all
from tests.integration.kafka.test_odd_records import send_raw
from tests.integration.landing.conftest import landed_rows, sink_commits

__all__ = ["send_raw"]

pytestmark = pytest.mark.integration

NAME = ((b"\xff\xfe", b"1"),)
MICROSECONDS, YEAR_ZERO = 1_764_140_000_000_000, -62_167_219_200_000
TIMES = [MICROSECONDS, YEAR_ZERO, 1_764_140_000_000]


@pytest.fixture
def odd_topic(landed_topic):
    return landed_topic(partitions=1, config={"message.timestamp.after.max.ms": str(2**63 - 1), "retention.ms": "-1"})


def land_as_the_sink(topic, records) -> None:
    """Land records as the sink does, which accepts every timestamp that fits into its column."""
    columns = {
        "topic": pa.array([topic.name] * len(records)),
        "partition": pa.array([0] * len(records), pa.int32()),
        "offset": pa.array(range(len(records)), pa.int64()),
        "timestamp": pa.array([r.timestamp * 1000 for r in records], pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        "value": pa.array([r.value.decode() for r in records]),
    }
    table = load_landing_table(topic)
    with table.transaction() as transaction:
        # PyIceberg cannot state the bounds of these times; the sink can.
        transaction.set_properties({"write.metadata.metrics.column.timestamp": "none"})
    table.append(pa.table(columns))


def run(lane, run_id="run"):
    results = [validate_unit(lane, unit, run_id) for unit in claim_landed(lane, run_id)]
    summary = commit_clean(lane, results, run_id)
    finish(lane, summary, run_id)
    return summary


def test_rows_with_odd_timestamps_are_validated_and_committed(odd_topic, lane, send_raw):
    records = [RawRecord(b"k", order(n), (), time) for n, time in enumerate(TIMES)]
    records += [RawRecord(b"k", b"bad", NAME, time) for time in TIMES]
    send_raw(odd_topic, *records)
    land_as_the_sink(odd_topic, records)
    consumer = lane(odd_topic)
    summary = run(consumer)
    assert (summary["clean"], summary["dead_lettered"]) == (3, 3)
    letters = [dict(letter.headers()) for letter in read_all(odd_topic.dead_letter_name)]
    assert [letter["dlq.timestamp"] for letter in letters[:2]] == [f"{t} ms".encode() for t in TIMES[:2]]
    assert all("header" in letter["dlq.unreadable"].decode() for letter in letters)


def test_a_repair_appends_records_with_odd_timestamps(odd_topic, lane, send_raw):
    records = [RawRecord(b"k", order(n), NAME, time) for n, time in enumerate(TIMES)]
    send_raw(odd_topic, *records)
    sink_commits(odd_topic, _0=3)
    repair(odd_topic, verify(odd_topic, grace=lane(odd_topic).landing_grace).due)
    assert landed_rows(odd_topic) == [(0, n, order(n).decode()) for n in range(3)]
    found = load_landing_table(odd_topic).scan().to_arrow()["timestamp"].to_pylist()
    assert found == [None, None, datetime(2025, 11, 26, 6, 53, 20, tzinfo=UTC)]
