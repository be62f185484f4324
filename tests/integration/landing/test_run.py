"""A run of the standard lane on real services: landed texts become clean rows and dead letters; counts balance."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal

import pytest
from confluent_kafka.admin import NewTopic
from pydantic import Field

from include.streams.contracts import Contract, Topic
from include.streams.contracts.types import UtcTime
from include.streams.lake.catalog import load_catalog
from include.streams.landing import staging, upkeep
from include.streams.landing.balance import DoesNotBalance, finish
from include.streams.landing.clean import commit_clean, ensure_clean_table
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.planning import claim_landed
from include.streams.landing.tables import clean_table, create_landing_table, load_landing_table, topic_id
from include.streams.landing.validation import validate_unit
from include.streams.landing.xcom import RunSummary
from include.streams.validators import rows
from tests import forks
from tests.contracts import change_contract
from tests.integration.kafka.conftest import open_claims, read_all, wait_for_topics
from tests.integration.landing.conftest import alarms_of, delete_records, plan_run

pytestmark = pytest.mark.integration


class Sale(Contract):
    """A sale of a shop."""

    version: Literal[1]
    number: Annotated[str, Field(max_length=20)]
    sold_at: UtcTime
    amount: Annotated[int, Field(ge=0, le=100)]
    note: Annotated[str, Field(max_length=20)] | None = None

    event_id_sql: ClassVar[str | None] = "number"

    @property
    def event_id(self) -> str:
        return self.number


def sale(number: object, amount: Any = 1, day: int = 1, **changes: Any) -> bytes:
    document = {"version": 1, "number": str(number), "sold_at": f"2026-01-{day:02}T10:00:00Z", "amount": amount}
    return json.dumps({**document, **changes}, ensure_ascii=False).encode()


@pytest.fixture
def sales(landing_services, admin) -> Callable[..., Topic]:
    def make(contract: type[Contract] = Sale, partitions: int = 2, event_time: str | None = "sold_at") -> Topic:
        topic = Topic(
            f"sales.{uuid.uuid4().hex[:8]}",
            contract,
            key="number",
            partitions=partitions,
            retention=timedelta(days=1),
            landed=True,
            event_time=event_time,
        )
        new = [NewTopic(topic.name, partitions, 1), NewTopic(topic.dead_letter_name, 1, 1)]
        for future in admin.create_topics(new).values():
            future.result(30)
        wait_for_topics(admin, topic.name, topic.dead_letter_name)
        create_landing_table(topic)
        return topic

    return make


@pytest.fixture
def consumer(sales, operations) -> Callable[..., LandingConsumer]:
    def make(topic: Topic | None = None, **settings: Any) -> LandingConsumer:
        settings = {"min_messages_per_unit": 1, "landing_grace": timedelta(), **settings}
        return LandingConsumer(name=f"lane-{uuid.uuid4().hex[:8]}", topic=topic or sales(), **settings)

    return make


def land(topic: Topic, partition: int, first: int, *values: bytes | None) -> None:
    """Append one data file as the sink does: invalid UTF-8 as U+FFFD, a tombstone as NULL."""
    import pyarrow as pa

    count = len(values)
    columns = {
        "topic": [topic.name] * count,
        "partition": pa.array([partition] * count, pa.int32()),
        "offset": pa.array(range(first, first + count), pa.int64()),
        "timestamp": pa.array([datetime(2026, 1, 5, tzinfo=UTC)] * count, pa.timestamp("us", tz="UTC")),
        "value": pa.array([None if v is None else v.decode("utf-8", "replace") for v in values], pa.string()),
    }
    load_landing_table(topic).append(pa.table(columns))


def clean_rows(topic: Topic) -> list[tuple[int, int, str]]:
    """(partition, offset, event id) of every row in the clean table, read by PyIceberg."""
    table = load_catalog().load_table(clean_table(topic))
    found = table.scan().to_arrow().to_pylist()
    return sorted((row["kafka_partition"], row["kafka_offset"], row["event_id"]) for row in found)


def run(consumer: LandingConsumer, run_id: str = "run-1") -> RunSummary:
    units = plan_run(consumer, run_id)
    summary = commit_clean(consumer, [validate_unit(consumer, unit, run_id) for unit in units], run_id)
    finish(consumer, summary, run_id)
    return summary


def counts(summary: RunSummary) -> dict[str, int]:
    return {name: summary[name] for name in ("landed", "clean", "dead_lettered", "duplicates", "without_record")}


def staging_files(consumer: LandingConsumer) -> list[str]:
    table = load_landing_table(consumer.topic)
    store = table.io.get_fs("gs")  # type: ignore[attr-defined]
    return store.find(f"landing/staging/{consumer.name}")


def test_good_rows_become_typed_columns_and_the_claim_is_closed(consumer, send):
    lane = consumer()
    first = [sale(1), sale(2, day=2, note="é")]
    send(lane.topic, *first)
    send(lane.topic, sale(3), partition=1)
    land(lane.topic, 0, 0, *first)
    land(lane.topic, 1, 0, sale(3))
    summary = run(lane)
    assert counts(summary) == {"landed": 3, "clean": 3, "dead_lettered": 0, "duplicates": 0, "without_record": 0}
    assert summary["days"] == ["2026-01-01", "2026-01-02"]
    table = load_catalog().load_table(clean_table(lane.topic)).scan().to_arrow()
    (row,) = [row for row in table.to_pylist() if row["number"] == "2"]
    assert row == {
        "version": 1,
        "number": "2",
        "sold_at": datetime(2026, 1, 2, 10, tzinfo=UTC),
        "amount": 1,
        "note": "é",
        "event_id": "2",
        "kafka_partition": 0,
        "kafka_offset": 1,
        "kafka_timestamp": datetime(2026, 1, 5, tzinfo=UTC),
        "kafka_log": topic_id(load_landing_table(lane.topic)),
    }
    assert open_claims(lane) == 0
    assert staging_files(lane) == []
    assert claim_landed(lane, "run-2") == []


def test_bad_rows_become_dead_letters_with_the_bytes_that_were_sent(consumer, send):
    lane = consumer()
    values = [sale(1), sale(2, amount="5"), b"\xff not json", None, sale(3), b'{"version": 1, "version": 1}']
    send(lane.topic, *values, key=b"\x00key", headers=[("trace", b"\xfe")])
    land(lane.topic, 0, 0, *values)
    units = claim_landed(lane, "run-1")
    (unit,) = [validate_unit(lane, unit, "run-1") for unit in units]
    assert (unit["landed"], unit["good"], unit["dead_lettered"]) == (6, 2, 4)
    letters_found = read_all(lane.topic.dead_letter_name)
    assert [record.value() for record in letters_found] == [values[1], values[2], values[3], values[5]]
    assert {record.key() for record in letters_found} == {b"\x00key"}
    headers = dict(letters_found[1].headers())
    assert headers["trace"] == b"\xfe"
    assert (headers["dlq.reason"], headers["dlq.partition"], headers["dlq.offset"]) == (b"not_utf8", b"0", b"2")
    assert headers["dlq.consumer"] == lane.name.encode()
    assert "dlq.landed_text" not in headers

    validate_unit(lane, units[0], "run-1")
    assert len(read_all(lane.topic.dead_letter_name)) == 4, "a retry sends no dead letter again"
    summary = commit_clean(lane, [validate_unit(lane, units[0], "run-1")], "run-1")
    assert finish(lane, summary, "run-1")["dead_lettered"] == 4
    assert clean_rows(lane.topic) == [(0, 0, "1"), (0, 4, "3")]


def test_a_bad_row_without_its_kafka_record_keeps_its_landed_text(consumer, send, admin):
    lane = consumer()
    values = [sale(1, amount="5"), sale(2)]
    send(lane.topic, *values, key=b"key")
    land(lane.topic, 0, 0, *values)
    delete_records(admin, lane.topic, 0, 1)
    units = claim_landed(lane, "run-1")
    for unit in units:
        validate_unit(lane, unit, "run-1")
    (letter,) = read_all(lane.topic.dead_letter_name)
    assert (letter.value(), letter.key()) == (values[0], None)
    assert dict(letter.headers())["dlq.landed_text"] == b"true"


def test_bytes_that_are_not_utf8_are_bad_even_if_the_landed_text_is_valid(consumer, send):
    lane = consumer()
    spoiled = sale(1, note="x").replace(b'"x"', b'"\xff"')
    genuine = sale(2, note="\ufffd")
    send(lane.topic, spoiled, genuine)
    land(lane.topic, 0, 0, spoiled, genuine)
    assert counts(run(lane)) == {"landed": 2, "clean": 1, "dead_lettered": 1, "duplicates": 0, "without_record": 0}
    assert clean_rows(lane.topic) == [(0, 1, "2")]
    assert [record.value() for record in read_all(lane.topic.dead_letter_name)] == [spoiled]


def test_of_an_event_that_was_sent_twice_the_first_row_stays(consumer, send):
    lane = consumer()
    send(lane.topic, sale(1), sale(2), sale(1))
    send(lane.topic, sale(2), sale(3), partition=1)
    land(lane.topic, 0, 0, sale(1), sale(2), sale(1))
    land(lane.topic, 1, 0, sale(2), sale(3))
    assert counts(run(lane))["duplicates"] == 2
    assert clean_rows(lane.topic) == [(0, 0, "1"), (0, 1, "2"), (1, 1, "3")]
    send(lane.topic, sale(3), sale(4))
    land(lane.topic, 0, 3, sale(3), sale(4))
    assert counts(run(lane, "run-2")) == {
        "landed": 2, "clean": 1, "dead_lettered": 0, "duplicates": 1, "without_record": 0
    }  # fmt: skip
    assert clean_rows(lane.topic) == [(0, 0, "1"), (0, 1, "2"), (0, 4, "4"), (1, 1, "3")]


def test_a_record_that_landed_twice_is_counted_once(consumer, send):
    lane = consumer()
    values = [sale(n) for n in range(6)]
    send(lane.topic, *values)
    land(lane.topic, 0, 0, *values[:4])
    land(lane.topic, 0, 2, *values[2:])
    assert counts(run(lane)) == {"landed": 6, "clean": 6, "dead_lettered": 0, "duplicates": 0, "without_record": 0}
    assert [offset for _, offset, _ in clean_rows(lane.topic)] == list(range(6))


def test_every_step_can_be_repeated_with_the_same_result(consumer, send):
    lane = consumer()
    values = [sale(1), sale(2, amount=-1), sale(1), sale(3, day=3)]
    send(lane.topic, *values)
    land(lane.topic, 0, 0, *values)
    units = claim_landed(lane, "run-1")
    found = []
    for _ in range(2):
        validated = [validate_unit(lane, unit, "run-1") for unit in units]
        found += [commit_clean(lane, validated, "run-1") for _ in range(2)]
        finish(lane, found[-1], "run-1")
    # A run is cleared after its end.
    validated = [validate_unit(lane, unit, "run-1") for unit in claim_landed(lane, "run-1")]
    found.append(commit_clean(lane, validated, "run-1"))
    finish(lane, found[-1], "run-1")
    assert all(summary == found[0] for summary in found)
    assert counts(found[0]) == {"landed": 4, "clean": 2, "dead_lettered": 1, "duplicates": 1, "without_record": 0}
    assert clean_rows(lane.topic) == [(0, 0, "1"), (0, 3, "3")]
    assert open_claims(lane) == 0


def test_a_run_whose_counts_do_not_balance_fails_and_stays_open(consumer, send):
    lane = consumer()
    send(lane.topic, sale(1), sale(2))
    land(lane.topic, 0, 0, sale(1), sale(2))
    units = claim_landed(lane, "run-1")
    summary = commit_clean(lane, [validate_unit(lane, unit, "run-1") for unit in units], "run-1")
    load_catalog().load_table(clean_table(lane.topic)).delete("kafka_offset = 1")
    with pytest.raises(DoesNotBalance, match="clean = 2, and there are 1"):
        finish(lane, summary, "run-1")
    assert open_claims(lane) == 1
    assert alarms_of(lane.name)["run_does_not_balance"][1]
    assert len(staging_files(lane)) == 1
    run(lane)
    assert open_claims(lane) == 0
    assert not alarms_of(lane.name)["run_does_not_balance"][1]


def test_a_dead_letter_stays_one_after_the_contract_is_loosened(consumer, send, sales):
    lane = consumer()
    send(lane.topic, sale(1, amount=500), sale(2))
    land(lane.topic, 0, 0, sale(1, amount=500), sale(2))
    assert counts(run(lane))["dead_lettered"] == 1

    class Loose(Sale):
        amount: Annotated[int, Field(ge=0, le=1000)]

    change_contract(lane.topic, Loose)
    assert counts(run(lane)) == {"landed": 2, "clean": 1, "dead_lettered": 1, "duplicates": 0, "without_record": 0}


class Wrong(Sale):
    event_id_sql: ClassVar[str | None] = "number || amount"


def test_a_wrong_event_id_sql_fails_the_unit(consumer, send, sales):
    lane = consumer(sales(Wrong))
    send(lane.topic, sale(1))
    land(lane.topic, 0, 0, sale(1))
    with pytest.raises(rows.FastPathDiffers):
        validate_unit(lane, claim_landed(lane, "run-1")[0], "run-1")


class Parsed(Sale):
    event_id_sql: ClassVar[str | None] = None
    tags: tuple[Annotated[str, Field(max_length=5)], ...] = ()


def test_a_contract_without_fast_path_and_event_time_has_the_same_result(consumer, send, sales):
    lane = consumer(sales(Parsed, event_time=None))
    values = [sale(1, tags=["a", "é"]), sale(2), sale(3, tags=["too long"]), sale(1, tags=["a", "é"])]
    send(lane.topic, *values)
    land(lane.topic, 0, 0, *values)
    assert counts(run(lane)) == {"landed": 4, "clean": 2, "dead_lettered": 1, "duplicates": 1, "without_record": 0}
    found = load_catalog().load_table(clean_table(lane.topic)).scan().to_arrow()
    assert set(found["tags"].to_pylist()) == {"[]", '["a","é"]'}


def test_an_optional_field_is_added_to_the_table_and_null_in_older_rows(consumer, send, sales):
    lane = consumer()
    send(lane.topic, sale(1))
    land(lane.topic, 0, 0, sale(1))
    run(lane)

    class Wider(Sale):
        colour: Annotated[str, Field(max_length=10)] | None = None

    change_contract(lane.topic, Wider)
    send(lane.topic, sale(2, colour="red"))
    land(lane.topic, 0, 1, sale(2, colour="red"))
    run(lane, "run-2")
    found = load_catalog().load_table(clean_table(lane.topic)).scan().to_arrow().to_pylist()
    assert sorted((row["number"], row["colour"]) for row in found) == [("1", None), ("2", "red")]

    class Other(Sale):
        amount: Annotated[float, Field(ge=0, le=100)]  # type: ignore[assignment]

    change_contract(lane.topic, Other)
    with pytest.raises(ValueError, match="amount"):
        ensure_clean_table(lane.topic)


def test_staging_files_of_finished_runs_are_removed_and_of_open_ones_stay(consumer, send, monkeypatch):
    lane = consumer()
    send(lane.topic, sale(1))
    land(lane.topic, 0, 0, sale(1))
    units = claim_landed(lane, "run-1")
    summary = commit_clean(lane, [validate_unit(lane, unit, "run-1") for unit in units], "run-1")
    assert staging.remove_finished([lane], older_than=timedelta(0)) == 0
    assert len(staging_files(lane)) == 1
    # As if killed between closing the claim and removing the files.
    with monkeypatch.context() as patch:
        patch.setattr(staging, "remove", lambda *_: None)
        finish(lane, summary, "run-1")
    assert staging.remove_finished([lane], older_than=timedelta(days=1)) == 0
    assert staging.remove_finished([lane], older_than=timedelta(0)) == 1
    assert staging_files(lane) == []


def test_no_file_of_a_landing_table_is_deleted_while_offsets_are_missing(consumer, send):
    lane = consumer()
    send(lane.topic, sale(1), sale(2), sale(3))
    land(lane.topic, 0, 0, sale(1))
    land(lane.topic, 0, 2, sale(3))
    # No snapshot is from the sink, so all are kept: the sink would not find its last one.
    assert upkeep.maintain_landing_table(lane.topic) == {"bundled": 0, "removed": None}
    land(lane.topic, 0, 1, sale(2))
    kept = upkeep.maintain_landing_table(lane.topic)
    assert kept == {"bundled": 0, "removed": 0}
    assert upkeep.maintain_table("clean.nothing", timedelta(0)) is None


# Runs in a separate process, which kills itself around the commit.
KILLED = """
import os, signal
from datetime import timedelta
from include.streams.contracts import Topic
from include.streams.lake import writing
from include.streams.landing.clean import commit_clean
from include.streams.landing.consumers import LandingConsumer
from tests.integration.landing.test_run import Sale

commit = writing.commit

def killed(table, change):
    if moment == "after":
        commit(table, change)
    os.kill(os.getpid(), signal.SIGKILL)

writing.commit = killed
of = Topic(topic, Sale, key="number", partitions=2, retention=timedelta(days=1), landed=True, event_time="sold_at")
commit_clean(LandingConsumer(name=name, topic=of), units, "run-1")
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_run_killed_around_its_commit_ends_with_the_same_result(moment, consumer, send):
    lane = consumer()
    values = [sale(1), sale(1), sale(2, amount=-1), sale(3, day=2)]
    send(lane.topic, *values)
    land(lane.topic, 0, 0, *values)
    units = [validate_unit(lane, unit, "run-1") for unit in claim_landed(lane, "run-1")]
    arguments = lane.name, lane.topic.name, moment, units
    assert forks.run(f"name, topic, moment, units = {arguments!r}\n{KILLED}") == -signal.SIGKILL
    # Half of a commit would be visible here.
    assert clean_rows(lane.topic) == ([] if moment == "before" else [(0, 0, "1"), (0, 3, "3")])
    summary = commit_clean(lane, units, "run-1")
    assert counts(summary) == {"landed": 4, "clean": 2, "dead_lettered": 1, "duplicates": 1, "without_record": 0}
    finish(lane, summary, "run-1")
    assert clean_rows(lane.topic) == [(0, 0, "1"), (0, 3, "3")]
