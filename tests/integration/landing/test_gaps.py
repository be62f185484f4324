"""Offsets that the sink has lost are read from Kafka and appended once, or reported as lost."""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowTaskTimeout
from confluent_kafka import Producer
from pyiceberg.table import Table

from include.streams import Package, Project, Registry
from include.streams.kafka.connection import client_config, producer_config
from include.streams.kafka.reading import RangeReader, ReadingStalled
from include.streams.landing import gaps, repairing, upkeep
from include.streams.landing.gaps import State, history
from include.streams.landing.repair import REPAIR_PROPERTY, repair
from include.streams.landing.tables import START_OFFSETS, load_landing_table, raw_table, topic_id
from include.streams.landing.verification import verify
from tests.conftest import PROJECT
from tests.integration.kafka.conftest import order
from tests.integration.landing.conftest import (
    alarms_of,
    delete_records,
    expected_records,
    finish,
    land,
    landed_rows,
    offsets_of,
    plan_run,
    remove_file,
    sink_commits,
)

pytestmark = pytest.mark.integration


def whole(topic, partition: int, count: int) -> list[tuple[int, int, str]]:
    return [(partition, n, order(f"{partition}-{n}").decode()) for n in range(count)]


def states(topic) -> list[tuple[str, int, int]]:
    found = history(topic_id(load_landing_table(topic)))
    return sorted((row.state, row.start_offset, row.end_offset) for row in found)


def offsets(units) -> list[int]:
    return [offset for _, offset in offsets_of(units)]


@pytest.fixture
def orders(landed_topic, send_orders):
    """A topic with 30 messages in its only partition."""
    topic = landed_topic(partitions=1)
    send_orders(topic, 0, 30)
    return topic


@pytest.mark.parametrize(
    ("landed", "committed"),
    [
        ([range(0, 10), range(20, 30)], 30),  # a file in the middle
        ([range(10, 30)], 30),  # the first files, before any good commit
        ([range(0, 20)], 30),  # the last ones: only the sink's group knows of them
        ([range(0, 5), [*range(8, 12), *range(15, 30)]], 30),  # rows within a file's bounds
        ([], 30),
    ],
)
def test_records_that_the_sink_lost_are_read_from_kafka_and_appended_once(orders, lane, landed, committed):
    land(orders, 0, *landed)
    sink_commits(orders, _0=committed)
    units = plan_run(lane(orders), "run")
    assert landed_rows(orders) == whole(orders, 0, 30)
    assert offsets(units) == list(range(30))
    assert {state for state, *_ in states(orders)} == {State.repaired}
    message, is_open = alarms_of(raw_table(orders))["landing_gap"]
    assert "have not landed" in message
    assert not is_open
    assert REPAIR_PROPERTY in load_landing_table(orders).current_snapshot().summary.additional_properties
    # Nothing is left to do.
    assert verify(orders).missing == ()
    assert plan_run(lane(orders), "another lane")
    assert len(landed_rows(orders)) == 30


def test_a_gap_is_an_alarm_once_and_only_after_its_grace(orders, lane):
    land(orders, 0, range(0, 10), range(20, 30))
    patient = lane(orders, landing_grace=lane(orders).max_claim_age)
    assert offsets(plan_run(patient, "run")) == list(range(10))
    assert "landing_gap" not in alarms_of(raw_table(orders))
    assert states(orders) == [(State.missing, 10, 20)]
    assert len(verify(orders, grace=lane(orders).landing_grace).due) == 1
    assert len(verify(orders, grace=lane(orders).landing_grace).due) == 1
    assert alarms_of(raw_table(orders))["landing_gap"][1]
    assert states(orders) == [(State.missing, 10, 20)]


def test_records_that_land_late_close_their_gap(orders, lane):
    land(orders, 0, range(0, 10), range(20, 30))
    verify(orders, grace=lane(orders).landing_grace)
    assert alarms_of(raw_table(orders))["landing_gap"][1]
    land(orders, 0, range(10, 20))
    assert verify(orders, grace=lane(orders).landing_grace).missing == ()
    assert not alarms_of(raw_table(orders))["landing_gap"][1]
    assert states(orders) == []


def test_a_check_does_not_close_the_alarm_about_offsets_outside_of_it(orders, lane, landed_long_ago):
    consumer = lane(orders, max_messages_per_claim=20)
    land(orders, 0, range(0, 10), range(10, 20))
    finish(plan_run(consumer, "first"))
    assert upkeep.check_gaps(orders)
    remove_file(orders, next(file.file.file_path for file in _files(orders) if _holds(file, 0)))
    assert not upkeep.check_gaps(orders)
    assert "10 offsets have not landed" in alarms_of(raw_table(orders))["landing_gap"][0]
    land(orders, 0, range(20, 30))
    finish(plan_run(consumer, "second"))
    assert alarms_of(raw_table(orders))["landing_gap"][1], "it is not repaired yet"
    assert repair(orders, verify(orders).missing).appended == 10
    assert upkeep.check_gaps(orders)
    assert not alarms_of(raw_table(orders))["landing_gap"][1]


def test_missing_offsets_before_the_table_begins_keep_no_alarm_open(orders, landed_long_ago):
    land(orders, 0, range(0, 10), range(10, 30))
    assert upkeep.check_gaps(orders)
    remove_file(orders, next(file.file.file_path for file in _files(orders) if _holds(file, 0)))
    assert not upkeep.check_gaps(orders)
    assert alarms_of(raw_table(orders))["landing_gap"][1]
    # A person has removed them on purpose.
    with load_landing_table(orders).transaction() as change:
        change.set_properties({START_OFFSETS: json.dumps({"0": 10})})
    assert upkeep.check_gaps(orders)
    assert verify(orders).missing == ()
    assert not alarms_of(raw_table(orders))["landing_gap"][1]


def test_rows_removed_as_in_the_runbook_are_not_reported_as_missing(orders, landed_long_ago):
    land(orders, 0, range(0, 30))
    assert upkeep.check_gaps(orders)
    runbook = (PROJECT / "docs/runbooks/landing-gap.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", runbook, re.DOTALL) if "table.delete" in block]
    code = code.replace("from include.project import PROJECT\n", "").replace("orders.placed", orders.name)
    code = code.replace("partition = 2 and offset >= 4711 and offset < 4715", "offset >= 4 and offset < 7")
    exec(code, {"PROJECT": Project(Package(name="shop", topics=Registry(orders)))})
    assert [offset for _, offset, _ in landed_rows(orders)] == [*range(4), *range(7, 30)]
    assert verify(orders).missing == ()
    assert upkeep.check_gaps(orders)
    assert alarms_of(raw_table(orders)) == {}


@pytest.mark.parametrize("error", [OSError("the store is away"), AirflowTaskTimeout("Timeout, PID: 1")])
def test_a_repair_that_fails_opens_the_alarm(orders, lane, monkeypatch, error):
    land(orders, 0, range(0, 10), range(20, 30))
    real = RangeReader.read

    def read(*args):
        yield from real(*args)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(RangeReader, "read", read)
        with pytest.raises(type(error)):
            plan_run(lane(orders), "run")
    message, is_open = alarms_of(raw_table(orders))["landing_gap"]
    assert message.startswith(f"{orders.name}-0: records have not landed; their repair has failed")
    assert is_open
    plan_run(lane(orders), "next")
    assert not alarms_of(raw_table(orders))["landing_gap"][1]


def test_markers_that_land_during_a_repair_open_no_alarm(orders, lane, monkeypatch):
    land(orders, 0, range(0, 10), range(11, 20))
    gaps.record_outcome(orders.name, topic_id(load_landing_table(orders)), 0, State.no_record, [(10, 11)])
    land(orders, 0, range(21, 25))
    real = repairing.repair

    def repair_and_land(*args, **kwargs):
        land(orders, 0, range(26, 30))
        return real(*args, **kwargs)

    # As if these offsets held no record.
    monkeypatch.setattr(RangeReader, "read", lambda *_: iter(()))
    monkeypatch.setattr(repairing, "repair", repair_and_land)
    plan_run(lane(orders), "run")
    assert states(orders) == [(State.missing, 25, 26), (State.no_record, 10, 11), (State.no_record, 20, 21)]
    assert alarms_of(raw_table(orders)) == {}


def test_an_unreadable_partition_does_not_delay_the_repair_of_others(landed_topic, send_orders, lane, monkeypatch):
    topic = landed_topic(partitions=2)
    for partition in (0, 1):
        send_orders(topic, partition, 10)
        land(topic, partition, range(5, 10))
    real = RangeReader.read

    def read(self, wanted):
        if wanted.partition == 0:
            raise ReadingStalled(str(wanted))
        return real(self, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(RangeReader, "read", read)
        units = plan_run(lane(topic), "run")
    assert offsets_of(units) == [(1, offset) for offset in range(10)]
    message, is_open = alarms_of(raw_table(topic))["landing_gap"]
    assert f"{topic.name}-0: records have not landed; they cannot be read from Kafka" in message
    assert f"{topic.name}-1: records have not landed; they are read from Kafka" in message
    assert is_open


def test_a_removed_file_is_repaired_before_and_after_the_claim(orders, lane):
    consumer = lane(orders, max_messages_per_claim=20)
    land(orders, 0, range(0, 10), range(10, 20), range(20, 30))
    first = plan_run(consumer, "first")
    for file in (first[1]["files"][0]["path"], *(f.file.file_path for f in _files(orders) if _holds(f, 20))):
        remove_file(orders, file)
    assert len(landed_rows(orders)) == 10
    # After the claim: a retried run has the same ranges, and finds their rows.
    assert offsets(plan_run(consumer, "first")) == list(range(20))
    assert not alarms_of(raw_table(orders))["landing_gap"][1]
    finish(first)
    # Before the claim: only the offsets of the sink's group show that there was more.
    sink_commits(orders, _0=30)
    assert offsets(plan_run(consumer, "second")) == list(range(20, 30))
    assert landed_rows(orders) == whole(orders, 0, 30)


def _files(topic):
    return list(load_landing_table(topic).scan().plan_files())


def _holds(task, offset: int) -> bool:
    return int.from_bytes(task.file.lower_bounds[3], "little") == offset


def test_offsets_removed_by_retention_are_reported_and_stop_nothing(orders, lane, admin):
    land(orders, 0, range(0, 5), range(12, 25))
    delete_records(admin, orders, 0, before=10)
    units = plan_run(lane(orders), "run")
    assert offsets(units) == [*range(0, 5), *range(10, 25)]
    assert units[0]["ranges"][0]["start"] == 0
    assert expected_records(lane(orders), units) == 20
    assert states(orders) == [(State.lost, 5, 10), (State.repaired, 10, 12)]
    message, is_open = alarms_of(raw_table(orders))["messages_lost"]
    assert is_open
    assert "5 offsets" in message
    assert "[5, 10)" in message
    # Reported once; later claims and lanes continue after it.
    assert offsets(plan_run(lane(orders), "another lane")) == [*range(0, 5), *range(10, 25)]
    assert len(states(orders)) == 2


def test_a_loss_is_reported_even_if_the_repair_was_killed_before(orders, lane, admin, monkeypatch):
    from include.streams.landing import repair as module

    land(orders, 0, range(0, 5), range(10, 30))
    delete_records(admin, orders, 0, before=10)
    due = verify(orders, grace=lane(orders).landing_grace).due
    with monkeypatch.context() as patch:
        patch.setattr(module, "add_to_alarm", _killed)
        with pytest.raises(KeyboardInterrupt):
            repair(orders, due)
    repair(orders, due)
    assert alarms_of(raw_table(orders))["messages_lost"][1]
    assert verify(orders).missing == ()
    assert states(orders) == [(State.lost, 5, 10)]


def test_offsets_without_a_record_are_not_reported_as_lost(landed_topic, lane):
    topic = landed_topic(partitions=1)
    config = {**producer_config(client_config()), "transactional.id": topic.name}
    producer = Producer(config)
    producer.init_transactions(30)
    for number, ends_well in enumerate((True, False, True)):
        producer.begin_transaction()
        for _ in range(3):
            producer.produce(topic.name, order(number), partition=0)
        producer.flush(30)
        producer.commit_transaction(30) if ends_well else producer.abort_transaction(30)
    # 0-2, a mark, 4-6 aborted, a mark, 8-10, a mark: one file, and what the sink has read.
    land(topic, 0, [0, 1, 2, 8, 9, 10])
    sink_commits(topic, _0=12)
    units = plan_run(lane(topic), "run")
    assert offsets(units) == [0, 1, 2, 8, 9, 10]
    assert expected_records(lane(topic), units) == 6
    assert [(r["start"], r["end"]) for r in units[0]["ranges"]] == [(0, 12)]
    assert {state for state, *_ in states(topic)} == {State.no_record}
    assert "messages_lost" not in alarms_of(raw_table(topic))
    assert len(landed_rows(topic)) == 6


def test_a_range_without_any_record_needs_no_task(landed_topic, lane):
    topic = landed_topic(partitions=1)
    producer = Producer({**producer_config(client_config()), "transactional.id": topic.name})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic.name, order(1), partition=0)
    producer.flush(30)
    producer.abort_transaction(30)
    sink_commits(topic, _0=2)
    consumer = lane(topic)
    assert plan_run(consumer, "run") == []
    # Its claim is closed, so it blocks no other.
    producer.begin_transaction()
    producer.produce(topic.name, order(2), partition=0)
    producer.commit_transaction(30)
    land(topic, 0, [2])
    assert offsets(plan_run(consumer, "next")) == [2]


def test_two_repairs_at_once_append_each_offset_once(orders, lane):
    land(orders, 0, range(0, 10), range(20, 30))
    due = verify(orders, grace=lane(orders).landing_grace).due
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: repair(orders, due), range(3)))
    assert landed_rows(orders) == whole(orders, 0, 30)


def test_a_repair_killed_after_its_commit_is_not_repeated(orders, lane, monkeypatch):
    land(orders, 0, range(0, 10), range(20, 30))
    due = verify(orders, grace=lane(orders).landing_grace).due
    with monkeypatch.context() as patch:
        patch.setattr(gaps, "record_outcome", _killed)
        with pytest.raises(KeyboardInterrupt):
            repair(orders, due)
    assert len(landed_rows(orders)) == 30
    repair(orders, due)
    assert landed_rows(orders) == whole(orders, 0, 30)
    assert verify(orders).missing == ()


def _killed(*_) -> None:
    raise KeyboardInterrupt


def before_each_append(monkeypatch, do: Callable[[], None]) -> None:
    """Call a function before each try of a repair to append records; `land` replaces the way of appending."""
    real = Table.append

    def append(self, *arguments, **options):
        do()
        return real(self, *arguments, **options)

    monkeypatch.setattr(Table, "append", append)


def test_offsets_that_land_during_their_repair_are_not_appended_again(orders, lane, monkeypatch):
    land(orders, 0, range(0, 10), range(20, 30))
    due = verify(orders, grace=lane(orders).landing_grace).due
    files = iter([range(10, 20)])
    before_each_append(monkeypatch, lambda: land(orders, 0, next(files)))
    assert repair(orders, due).appended == 0
    assert next(files, None) is None
    assert landed_rows(orders) == whole(orders, 0, 30)


def test_commits_of_the_sink_during_a_repair_cause_no_second_read(landed_topic, send_orders, lane, monkeypatch):
    """Reading a large gap takes longer than the time to the sink's next commit."""
    from include.streams.landing import repair as module

    topic = landed_topic(partitions=2)
    for partition in (0, 1):
        send_orders(topic, partition, 30)
    land(topic, 0, range(0, 10), range(20, 30))
    due = verify(topic, grace=lane(topic).landing_grace).due
    reads = []
    offsets, others = iter(range(30)), iter((12, 14, 16))
    read = RangeReader.read

    def read_while_the_sink_commits(self, wanted):
        reads.append(wanted)
        yield from read(self, wanted)
        land(topic, 1, [next(offsets)])

    def land_late() -> None:
        if (late := next(others, None)) is not None:
            land(topic, 0, [late])

    monkeypatch.setattr(RangeReader, "read", read_while_the_sink_commits)
    before_each_append(monkeypatch, land_late)
    monkeypatch.setattr(module, "COMMIT_TRIES", 4)
    assert repair(topic, due).appended == 7
    assert [(r.start, r.end) for r in reads] == [(10, 20)]
    assert [row for row in landed_rows(topic) if row[0] == 0] == whole(topic, 0, 30)
    assert verify(topic).missing == ()


def test_a_repair_with_a_conflict_in_each_try_fails_and_appends_nothing(orders, lane, monkeypatch):
    from include.streams.landing import repair as module

    land(orders, 0, range(0, 10), range(20, 30))
    due = verify(orders, grace=lane(orders).landing_grace).due
    others = iter(range(30, 100))
    with monkeypatch.context() as patch:
        before_each_append(patch, lambda: land(orders, 0, [next(others)]))
        with pytest.raises(module.RepairFailed, match=f"at each of {module.COMMIT_TRIES} tries"):
            repair(orders, due)
    assert len(landed_rows(orders)) == 20 + module.COMMIT_TRIES
    assert repair(orders, due).appended == 10


def test_a_repair_writes_the_same_rows_as_the_sink(landed_topic, lane, send):
    topic = landed_topic(partitions=1)
    send(topic, b"not JSON", None, b"caf\xe9", "caf\u00e9\x00".encode(), b"")
    sink_commits(topic, _0=5)
    plan_run(lane(topic), "run")
    assert [value for _, _, value in landed_rows(topic)] == ["not JSON", None, "caf\ufffd", "caf\u00e9\x00", ""]
    row = load_landing_table(topic).scan().to_arrow().to_pylist()[0]
    assert row["topic"] == topic.name
    assert row["timestamp"] is not None


def test_a_recreated_topic_stops_the_lane(orders, lane, admin, make_topic):
    consumer = lane(orders)
    land(orders, 0, range(0, 10))
    finish(plan_run(consumer, "first"))
    make_again(admin, make_topic, orders)
    with pytest.raises(AirflowFailException, match="deleted and recreated"):
        plan_run(consumer, "second")
    assert alarms_of(consumer.name)["consumer_stopped"][1]


def make_again(admin, make_topic, topic) -> None:
    """Delete the topic and create one with the same name."""
    from confluent_kafka import KafkaException

    for future in admin.delete_topics([topic.name, topic.dead_letter_name], operation_timeout=30).values():
        future.result(30)
    for _ in range(50):
        try:
            make_topic(topic.name, partitions=1, landed=True)
            return
        except KafkaException as error:
            if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                raise
