"""Landed offsets are claimed once, up to the first hole, and planned into units that read each of them once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event, text

from include.streams.landing import gaps
from include.streams.landing.gaps import State
from include.streams.landing.index import LandingIndex
from include.streams.landing.planning import claim_landed, plan_again
from include.streams.landing.tables import load_landing_table, topic_id
from include.streams.operations.database import begin, engine
from tests.integration.kafka.conftest import committed
from tests.integration.landing.conftest import expected_records, finish, land, offsets_of, sink_commits

pytestmark = pytest.mark.integration


def span(partition: int, *numbers: range) -> list[tuple[int, int]]:
    return [(partition, n) for r in numbers for n in r]


def ranges(units) -> list[tuple[int, int, int]]:
    return sorted((r["partition"], r["start"], r["end"]) for unit in units for r in unit["ranges"])


@pytest.fixture
def orders(landed_topic, send_orders):
    """A topic with 100 messages in each of two partitions."""
    topic = landed_topic(partitions=2)
    for partition in (0, 1):
        send_orders(topic, partition, 100)
    return topic


def test_a_run_claims_the_landed_offsets_and_the_next_run_the_following(orders, lane, admin):
    consumer = lane(orders)
    assert claim_landed(consumer, "nothing has landed") == []
    land(orders, 0, range(0, 10), range(10, 20))
    land(orders, 1, range(0, 5))
    first = claim_landed(consumer, "first")
    assert [unit["unit"] for unit in first] == [0, 1, 2]
    assert ranges(first) == [(0, 0, 10), (0, 10, 20), (1, 0, 5)]
    assert offsets_of(first) == span(0, range(20)) + span(1, range(5))
    assert expected_records(lane(orders), first) == 25
    # Kafka's own tools show the remaining lag.
    assert committed(admin, consumer.group, orders) == {0: 20, 1: 5}
    finish(first)
    land(orders, 0, range(20, 30))
    assert ranges(claim_landed(consumer, "second")) == [(0, 20, 30)]


def test_no_offset_after_a_gap_is_claimed(orders, lane):
    consumer = lane(orders, landing_grace=lane(orders).max_claim_age)
    land(orders, 0, range(0, 10))
    land(orders, 0, range(12, 20))
    land(orders, 1, range(3, 9))
    assert ranges(claim_landed(consumer, "run")) == [(0, 0, 10)]


def test_offsets_that_the_sink_has_not_committed_yet_are_no_gap(orders, lane):
    consumer = lane(orders, landing_grace=lane(orders).max_claim_age)
    land(orders, 0, range(0, 10))
    sink_commits(orders, _0=40)
    units = claim_landed(consumer, "run")
    assert ranges(units) == [(0, 0, 10)]
    land(orders, 0, range(10, 40))
    finish(units)
    assert ranges(claim_landed(consumer, "next")) == [(0, 10, 40)]


def test_a_retried_run_gets_its_ranges_after_changes_of_the_table(orders, lane):
    consumer = lane(orders)
    land(orders, 0, range(0, 10), range(10, 20))
    before = claim_landed(consumer, "run")
    land(orders, 0, range(5, 30))
    # All files are rewritten into one, and the snapshots that held the others expire.
    table = load_landing_table(orders)
    table.overwrite(table.scan().to_arrow())
    newest = table.current_snapshot().snapshot_id
    with table.maintenance.expire_snapshots() as expire:
        expire.by_ids([s.snapshot_id for s in table.snapshots() if s.snapshot_id != newest])
    again = claim_landed(consumer, "run")
    assert again[0]["claim_id"] == before[0]["claim_id"]
    assert set(offsets_of(again)) == set(offsets_of(before)) == set(span(0, range(20)))
    one = plan_again(consumer, before[1])
    assert one["ranges"] == before[1]["ranges"]
    assert {file["path"] for file in one["files"]} == {file["path"] for file in again[0]["files"]}


def test_files_that_overlap_are_read_once_for_each_offset(orders, lane):
    land(orders, 0, range(0, 10), range(5, 15), range(0, 15), range(12, 30))
    units = claim_landed(lane(orders), "run")
    assert offsets_of(units) == span(0, range(30))
    assert ranges(units)[0][1] == 0


def test_a_sparse_file_hides_no_file_within_its_bounds(orders, lane):
    # One sink task lost its partition and got it back; another task landed the offsets in between.
    land(orders, 0, [*range(0, 10), *range(20, 30)])
    land(orders, 0, range(10, 20))
    units = claim_landed(lane(orders), "run")
    assert offsets_of(units) == span(0, range(30))


def test_no_range_is_claimed_while_another_claim_of_the_lane_is_open(orders, lane):
    consumer = lane(orders)
    land(orders, 0, range(0, 10))
    failed = claim_landed(consumer, "failed")
    land(orders, 0, range(10, 20))
    assert claim_landed(consumer, "next") == []
    assert ranges(claim_landed(consumer, "failed")) == ranges(failed)
    finish(failed)
    assert claim_landed(consumer, "next") == []  # it is settled: a run's ranges never change
    assert ranges(claim_landed(consumer, "after")) == [(0, 10, 20)]


def test_runs_that_claim_at_once_never_get_the_same_offsets(orders, lane):
    consumer = lane(orders)
    land(orders, 0, range(0, 50))
    land(orders, 1, range(0, 50))
    # A process has four connections to the database. The holder of the lock needs two, and each waiter has one.
    with ThreadPoolExecutor(3) as pool:
        claimed = list(pool.map(lambda n: claim_landed(consumer, f"run {n}"), range(4)))
    assert sorted(r for units in claimed for r in ranges(units)) == [(0, 0, 50), (1, 0, 50)]


def test_a_claim_is_capped_and_shared_fairly_between_partitions(orders, lane):
    consumer = lane(orders, max_messages_per_claim=60)
    land(orders, 0, range(0, 100))
    land(orders, 1, range(0, 10))
    units = claim_landed(consumer, "run")
    assert ranges(units) == [(0, 0, 50), (1, 0, 10)]
    assert offsets_of(units) == span(0, range(50)) + span(1, range(10))


def test_a_unit_is_a_partition_if_the_consumer_maps_by_partition(orders, lane):
    consumer = lane(orders, map_by="partition")
    land(orders, 0, range(0, 10), range(10, 20))
    land(orders, 1, range(0, 10), range(10, 20))
    units = claim_landed(consumer, "run")
    assert [[(r["partition"], r["start"], r["end"]) for r in unit["ranges"]] for unit in units] == [
        [(0, 0, 20)],
        [(1, 0, 20)],
    ]
    assert [len(unit["files"]) for unit in units] == [2, 2]


def test_no_transaction_is_open_while_a_plan_reads_the_store(orders, lane, monkeypatch):
    """The server ends an idle transaction after five minutes, and each retry would fail in the same way."""
    land(orders, 0, range(0, 10, 2))
    holes = [(n, n + 1) for n in (1, 3, 5, 7)]
    gaps.record_outcome(orders.name, topic_id(load_landing_table(orders)), 0, State.no_record, holes)
    idle: list[int] = []
    reads = {name: getattr(LandingIndex, name) for name in ("files", "read_ahead")}

    def watched(name: str):
        def read(*arguments):
            with begin() as connection:
                query = (
                    "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'"
                )
                idle.append(connection.scalar(text(query)) or 0)
            return reads[name](*arguments)

        return read

    for name in reads:
        monkeypatch.setattr(LandingIndex, name, watched(name))
    units = claim_landed(lane(orders), "run")
    assert offsets_of(units) == [(0, offset) for offset in range(0, 10, 2)]
    assert idle
    assert not any(idle)


def test_a_cleared_old_run_loads_no_settled_offsets_of_later_claims(orders, lane, monkeypatch):
    consumer = lane(orders)
    land(orders, 0, [0, 2])
    landing_id = topic_id(load_landing_table(orders))
    gaps.record_outcome(orders.name, landing_id, 0, State.no_record, [(1, 2)])
    finish(claim_landed(consumer, "old"))
    monkeypatch.setattr(gaps, "MAX_RANGES", 1)
    for offset in range(3, 29, 2):
        gaps.record_outcome(orders.name, landing_id, 0, State.no_record, [(offset, offset + 1)])
    rows: list[int] = []

    def count(conn, cursor, statement, *_) -> None:
        if "from landing_gaps" in statement.lower():
            rows.append(cursor.rowcount)

    event.listen(engine(), "after_cursor_execute", count)
    try:
        assert offsets_of(claim_landed(consumer, "old")) == [(0, 0), (0, 2)]
    finally:
        event.remove(engine(), "after_cursor_execute", count)
    assert rows == [1]
