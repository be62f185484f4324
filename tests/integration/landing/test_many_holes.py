"""Landed topics with transactions or compaction: thousands of offsets hold no record, and the lane is far behind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from confluent_kafka import Producer

from include.streams.kafka.claims import positions_of
from include.streams.kafka.connection import client_config, producer_config
from include.streams.kafka.offsets import GroupOffsets, Partition
from include.streams.kafka.reading import RangeReader
from include.streams.landing import gaps, index, intervals, repair, snapshot, upkeep
from include.streams.landing.gaps import State, history
from include.streams.landing.index import LandingIndex
from include.streams.landing.readiness import Lane, Readiness, check_readiness
from include.streams.landing.tables import load_landing_table, raw_table, topic_id
from include.streams.landing.verification import verify
from include.streams.operations.database import begin, engine
from tests.integration.kafka.conftest import order
from tests.integration.landing.conftest import (
    alarms_of,
    delete_records,
    finish,
    land,
    landed_rows,
    offsets_of,
    plan_run,
    remove_file,
    sink_commits,
)

pytestmark = pytest.mark.integration

NOW, HOUR = timedelta(), timedelta(hours=1)
# Each with two messages and a marker.
TRANSACTIONS = 60
RECORDS = [offset for offset in range(3 * TRANSACTIONS) if offset % 3 < 2]
MARKERS = [offset for offset in range(3 * TRANSACTIONS) if offset % 3 == 2]


@pytest.fixture
def transactions(landed_topic, operations):
    """A topic with TRANSACTIONS of a real transactional producer in its only partition."""
    topic = landed_topic(partitions=1)
    producer = Producer({**producer_config(client_config()), "transactional.id": topic.name})
    producer.init_transactions(30)
    for _ in range(TRANSACTIONS):
        producer.begin_transaction()
        for number in range(2):
            producer.produce(topic.name, order(number), partition=0)
        producer.commit_transaction(30)
    return topic


@pytest.fixture
def backlog(transactions):
    """All records have landed, and the sink has read the whole topic."""
    for first in range(0, len(RECORDS), 20):
        land(transactions, 0, RECORDS[first : first + 20])
    sink_commits(transactions, _0=3 * TRANSACTIONS)
    return transactions


@pytest.fixture
def read(monkeypatch) -> list[tuple[int, int]]:
    """The ranges that are read from Kafka."""
    found: list[tuple[int, int]] = []
    real = RangeReader.read

    def reading(self, wanted):
        assert engine().pool.checkedout() == 0, "Kafka is read in a transaction"  # type: ignore[attr-defined]
        found.append((wanted.start, wanted.end))
        return real(self, wanted)

    monkeypatch.setattr(RangeReader, "read", reading)
    return found


def of_state(topic, state: State) -> list[tuple[int, int]]:
    return [(row.start_offset, row.end_offset) for row in history(topic_id(load_landing_table(topic)), [state])]


def checked(topic) -> int | None:
    with begin() as connection:
        return positions_of(connection, raw_table(topic)).get(Partition(topic.name, 0), ("", None))[1]


def waiting(consumer) -> Lane:
    """A new run of the lane, as its sensor checks it."""
    return Lane(consumer.name, consumer.topic.name, "new", consumer.conn_id, 0.0, 3600.0)


def forget_files() -> None:
    """Clear the caches, as in a new process."""
    index.clear_caches()


def test_the_work_grows_linearly_with_the_number_of_holes(landed_topic, send_orders, monkeypatch):
    done = 0
    subtract = intervals.subtract

    def counted(ranges, others):
        nonlocal done
        done += len(ranges) + len(others)
        return subtract(ranges, others)

    monkeypatch.setattr(intervals, "subtract", counted)
    holes = 20_000
    topic = landed_topic(partitions=1)
    send_orders(topic, 0, 2 * holes + 1)
    land(topic, 0, range(0, 2 * holes + 1, 2))
    of_topic = topic_id(load_landing_table(topic))
    wanted = [(offset, offset + 1) for offset in range(1, 2 * holes, 2)]
    for _ in range(2):
        assert [(gap.offsets.start, gap.offsets.end) for gap in verify(topic, grace=HOUR).missing] == wanted
    for first in range(0, holes, 5_000):
        gaps.record_outcome(topic.name, of_topic, 0, State.no_record, wanted[first : first + 5_000])
    assert verify(topic, grace=HOUR).missing == ()
    assert of_state(topic, State.missing) == []
    assert of_state(topic, State.no_record) == wanted
    assert done < 100 * holes


def test_a_killed_repair_continues_after_its_last_step(backlog, lane, read, monkeypatch):
    monkeypatch.setattr(repair, "STEP_OFFSETS", 30)
    due = verify(backlog, grace=NOW).due
    steps = 0
    record = gaps.record_outcome

    def killed_in_the_third(*arguments) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt
        record(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(gaps, "record_outcome", killed_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            repair.repair(backlog, due)
    settled = of_state(backlog, State.no_record)
    assert 0 < len(settled) < len(MARKERS)
    assert all(end - start <= 30 for start, end in read)
    read.clear()
    repair.repair(backlog, due)
    assert min(start for start, _ in read) > settled[-1][0]
    assert [start for start, _ in of_state(backlog, State.no_record)] == MARKERS
    assert verify(backlog).missing == ()
    assert [offset for _, offset, _ in landed_rows(backlog)] == RECORDS


def test_a_step_also_ends_after_so_many_bytes(backlog, monkeypatch):
    monkeypatch.setattr(repair, "STEP_BYTES", 300)
    recorded = []
    record = gaps.record_outcome
    monkeypatch.setattr(gaps, "record_outcome", lambda *arguments: (recorded.append(arguments), record(*arguments)))
    repair.repair(backlog, verify(backlog, grace=NOW).due)
    assert len(recorded) > 5
    assert verify(backlog).missing == ()


def test_a_claim_repairs_only_gaps_within_its_own_range(backlog, lane, read, landed_long_ago):
    consumer = lane(backlog, max_messages_per_claim=45, landing_grace=HOUR)
    taken: list[int] = []
    for number in range(4):
        # The last marker is at the end, and its grace period is not over.
        until = min(45 * (number + 1), MARKERS[-1])
        units = plan_run(consumer, f"run {number}")
        assert [(r["start"], r["end"]) for unit in units for r in unit["ranges"]][-1][1] == until
        assert max(end for _, end in read) <= until
        assert len(of_state(backlog, State.no_record)) == until // 3
        taken += [offset for _, offset in offsets_of(units)]
        finish(units)
    assert taken == RECORDS
    assert len(read) == 4


def test_a_partition_far_behind_does_not_reduce_the_share_of_others(landed_topic, send_orders, landed_long_ago, read):
    topic = landed_topic(partitions=2)
    send_orders(topic, 0, 100)
    send_orders(topic, 1, 10)
    land(topic, 0, range(1, 100, 2))
    land(topic, 1, range(1, 11, 2))
    verified = verify(topic, max_offsets=20, grace=HOUR)
    assert [gap.offsets.start for gap in verified.due if gap.offsets.partition == 0] == [0, 2, 4, 6, 8]
    assert [gap.offsets.start for gap in verified.due if gap.offsets.partition == 1] == [0, 2, 4, 6, 8]
    assert verified.snapshot.checked == {0: (0, 20), 1: (0, 10)}


def test_a_gap_before_offsets_that_landed_long_ago_is_due_at_once(backlog, lane, monkeypatch):
    assert verify(backlog, grace=HOUR).due == ()
    monkeypatch.setattr(snapshot, "INNER_GRACE", NOW)
    # The last marker is at the end, where the sink may still be about to commit.
    assert [gap.offsets.start for gap in verify(backlog, grace=HOUR).due] == MARKERS[:-1]


def test_a_sensor_reads_only_the_files_of_its_next_offsets(backlog, lane, monkeypatch):
    consumer = lane(backlog)
    finish(plan_run(consumer, "run"))
    opened = []
    real = index.offset_column
    monkeypatch.setattr(index, "offset_column", lambda io, file: (opened.append(file.path), real(io, file))[1])
    forget_files()
    assert check_readiness(waiting(consumer), verify_too=False) is Readiness.no_data
    assert opened == []
    # A lane that has claimed nothing needs only its next offset, which is in one file.
    assert check_readiness(waiting(lane(backlog)), verify_too=False) is Readiness.ready
    assert len(opened) <= 1


def test_files_are_read_outside_of_transactions(backlog, lane, read, monkeypatch):
    real, opened = index.offset_column, []

    def column(io, file):
        assert engine().pool.checkedout() == 0  # type: ignore[attr-defined]
        opened.append(file.path)
        return real(io, file)

    monkeypatch.setattr(index, "offset_column", column)
    forget_files()
    found = verify(backlog, grace=NOW)
    forget_files()
    repair.repair(backlog, found.due)
    assert opened
    assert read


def test_a_topic_without_a_lane_is_repaired_and_checked_once(backlog, read, landed_long_ago, monkeypatch):
    monkeypatch.setattr(upkeep, "CHECKED_AT_ONCE", 45)
    # The last marker is at the end: its grace is not over.
    assert not upkeep.check_gaps(backlog)
    assert [start for start, _ in of_state(backlog, State.no_record)] == MARKERS[:-1]
    assert checked(backlog) == MARKERS[-1]
    assert upkeep.check_gaps(backlog, grace=NOW)
    assert checked(backlog) == 3 * TRANSACTIONS
    assert alarms_of(raw_table(backlog)) == {}, "transaction markers open no alarm"
    # The next night reads nothing again, neither files nor Kafka.
    forget_files()
    read.clear()
    monkeypatch.setattr(index, "offset_column", lambda *_: pytest.fail("a file was read again"))
    assert upkeep.check_gaps(backlog, grace=NOW)
    assert upkeep.maintain_landing_table(backlog, grace=NOW) == {"bundled": 0, "removed": 0}
    assert read == []


def test_a_check_that_runs_out_of_time_continues_the_next_night(backlog, landed_long_ago, monkeypatch):
    monkeypatch.setattr(upkeep, "CHECKED_AT_ONCE", 45)
    seen = []
    for _ in range(3):
        assert not upkeep.check_gaps(backlog, seconds=0)
        seen.append(checked(backlog))
    assert seen == [45, 90, 135]


def test_files_removed_below_the_position_of_the_check_are_reported(backlog, landed_long_ago):
    assert upkeep.check_gaps(backlog, grace=NOW)
    remove_file(backlog, LandingIndex(load_landing_table(backlog)).files(0, 50)[0].path)
    before = landed_rows(backlog)
    assert not upkeep.check_gaps(backlog, grace=NOW)
    assert upkeep.maintain_landing_table(backlog, grace=NOW)["removed"] is None  # type: ignore[index]
    assert alarms_of(raw_table(backlog))["landing_gap"][1]
    assert landed_rows(backlog) == before, "whoever removed them may have wanted it"


def test_concurrent_lanes_and_checks_lose_and_repeat_nothing(transactions, lane, landed_long_ago, monkeypatch):
    # Real losses among the markers.
    kept = [offset for offset in RECORDS if not 60 <= offset < 90]
    land(transactions, 0, kept)
    monkeypatch.setattr(repair, "STEP_OFFSETS", 25)
    monkeypatch.setattr(upkeep, "CHECKED_AT_ONCE", 50)
    lanes = [lane(transactions, max_messages_per_claim=40) for _ in range(2)]

    def run(consumer) -> list[int]:
        taken: list[int] = []
        for number in range(20):
            units = plan_run(consumer, f"run {number}")
            taken += [offset for _, offset in offsets_of(units)]
            if units:
                finish(units)
        return taken

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(run, consumer) for consumer in lanes]
        checks = [pool.submit(upkeep.check_gaps, transactions) for _ in range(2)]
        for check in checks:
            check.result(300)
        assert [each.result(300) for each in runs] == [RECORDS, RECORDS]
    assert [offset for _, offset, _ in landed_rows(transactions)] == RECORDS
    assert [start for start, _ in of_state(transactions, State.no_record)] == MARKERS[:-1]
    upkeep.check_gaps(transactions)
    assert of_state(transactions, State.missing) == []


def test_a_large_loss_over_many_steps_is_one_message(transactions, lane, admin, monkeypatch):
    monkeypatch.setattr(repair, "STEP_OFFSETS", 10)
    sink_commits(transactions, _0=3 * TRANSACTIONS)
    delete_records(admin, transactions, 0, before=100)
    plan_run(lane(transactions), "run")
    message, is_open = alarms_of(raw_table(transactions))["messages_lost"]
    assert is_open
    assert message.count("They are lost") == 1
    assert of_state(transactions, State.lost) == [(0, 100)]


def test_a_partition_without_a_leader_stops_no_other(landed_topic, send_orders, lane, monkeypatch):
    topic = landed_topic(partitions=2)
    for partition in (0, 1):
        send_orders(topic, partition, 10)
        land(topic, partition, range(5, 10))
    consumer = lane(topic)
    real = GroupOffsets.fetch_offsets_sync
    down = Partition(topic.name, 0)
    with monkeypatch.context() as patch:
        # The offsets that a client finds while the leader of one partition is away.
        patch.setattr(
            GroupOffsets,
            "fetch_offsets_sync",
            lambda *a, **k: {p: each for p, each in real(*a, **k).items() if p != down},
        )
        units = plan_run(consumer, "run")
        assert offsets_of(units) == [(1, offset) for offset in range(10)]
        assert alarms_of(raw_table(topic))["landing_gap"][1]
    finish(units)
    assert offsets_of(plan_run(consumer, "next")) == [(0, offset) for offset in range(10)]
    assert not alarms_of(raw_table(topic))["landing_gap"][1]
