"""Landings of other products' sinks on real services: plain objects become clean rows, each record once."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka.admin import NewTopic

from include.streams.contracts import PlainObjects, Topic
from include.streams.landing import objects
from include.streams.landing.__main__ import main
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.readiness import Lane, Readiness, check_readiness
from include.streams.landing.tables import create_landing_table, raw_table
from include.streams.landing.verification import verify
from tests.integration.kafka.conftest import wait_for_topics
from tests.integration.landing.conftest import alarms_of, delete_records, landed_rows, plan_run, sink_commits
from tests.integration.landing.test_run import Sale, clean_rows, counts, run, sale
from tests.sinks import Sink

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def always_listed(monkeypatch) -> None:
    """Objects are listed at each check, not every few seconds."""
    monkeypatch.setattr(objects, "LIST_SECONDS", 0.0)
    monkeypatch.setattr("include.streams.landing.sources.LIST_SECONDS", 0.0)


@pytest.fixture
def landed_by(landing_services, operations, admin) -> Callable[..., tuple[LandingConsumer, Sink]]:
    """A consumer of a topic that a foreign sink lands, and the sink."""

    def make(partitions: int = 1, extension: Any = ".json", **settings: Any) -> tuple[LandingConsumer, Sink]:
        name = f"sales.{uuid.uuid4().hex[:8]}"
        source = PlainObjects(
            **{
                "prefix": f"gs://landing/topics-{uuid.uuid4().hex[:8]}",
                "order_grace": timedelta(),
                "group": f"connect-{name}",
                **settings,
            }
        )
        topic = Topic(
            name, Sale, key="number", partitions=partitions, retention=timedelta(days=1), landed=source,
            event_time="sold_at",
        )  # fmt: skip
        new = [NewTopic(topic.name, partitions, 1), NewTopic(topic.dead_letter_name, 1, 1)]
        for future in admin.create_topics(new).values():
            future.result(30)
        wait_for_topics(admin, topic.name, topic.dead_letter_name)
        create_landing_table(topic)
        lane = LandingConsumer(
            name=f"lane-{uuid.uuid4().hex[:8]}", topic=topic, min_messages_per_unit=1, landing_grace=timedelta()
        )
        return lane, Sink(name, source, extension)

    return make


def sales(offsets: Iterable[int], first: int = 0) -> dict[int, bytes]:
    """{offset: its record}."""
    return {offset: sale(first + offset) for offset in offsets}


def send_sales(send, topic: Topic, count: int, partition: int = 0) -> None:
    send(topic, *sales(range(count), 1000 * partition).values(), partition=partition)


def events(topic: Topic) -> list[int]:
    """The numbers of the events in the clean table, in order, with repeats."""
    return sorted(int(event) for _, _, event in clean_rows(topic))


LAYOUTS = [
    pytest.param({"layout": "confluent"}, id="confluent"),
    pytest.param({"layout": "confluent", "records": "values"}, id="confluent values"),
    pytest.param({"layout": "confluent-time", "extension": ".json.gz"}, id="time folders"),
    pytest.param({"layout": "aiven", "value": "base64", "extension": ".gz"}, id="aiven"),
]


@pytest.mark.parametrize("settings", LAYOUTS)
def test_objects_become_clean_rows_in_mapped_tasks(landed_by, send, settings):
    lane, sink = landed_by(partitions=2, **settings)
    send_sales(send, lane.topic, 30)
    send_sales(send, lane.topic, 10, partition=1)
    names = [sink.write(0, sales(range(first, first + 10))) for first in (0, 10, 20)]
    names.append(sink.write(1, sales(range(10), 1000)))
    sink_commits(lane.topic, _0=30, _1=10)
    units = plan_run(lane, "run-1")
    assert [len(unit["files"]) for unit in units] == [1, 1, 1, 1]
    assert sorted(file["path"] for unit in units for file in unit["files"]) == sorted(
        f"gs://landing/{name}" for name in names
    )
    summary = run(lane)
    assert counts(summary) == {"landed": 40, "clean": 40, "dead_lettered": 0, "duplicates": 0, "without_record": 0}
    assert events(lane.topic) == [*range(30), *range(1000, 1010)]
    # Nothing was read from Kafka.
    assert landed_rows(lane.topic) == []


def test_an_object_written_again_after_the_plan_is_read_by_a_new_plan(landed_by, send):
    lane, sink = landed_by(layout="aiven")
    send_sales(send, lane.topic, 20)
    sink.write(0, sales(range(10)))
    units = plan_run(lane, "run-1")
    assert [unit["ranges"][0]["end"] for unit in units] == [10]
    # After a crash, the sink writes the object again, with more records.
    sink.write(0, sales(range(20)))
    assert counts(run(lane))["clean"] == 10
    assert counts(run(lane, "run-2"))["clean"] == 10
    assert events(lane.topic) == list(range(20))


def test_an_object_that_shrinks_after_the_plan_is_completed_from_kafka(landed_by, send):
    lane, sink = landed_by()
    send_sales(send, lane.topic, 10)
    sink.write(0, sales(range(10)))
    plan_run(lane, "run-1")
    sink.write(0, sales(range(4)))
    assert counts(run(lane))["clean"] == 10
    assert events(lane.topic) == list(range(10))
    assert [offset for _, offset, _ in landed_rows(lane.topic)] == [4, 5, 6, 7, 8, 9]


def test_overlaps_count_once(landed_by, send):
    lane, sink = landed_by()
    send_sales(send, lane.topic, 40)
    for first, end in ((0, 20), (10, 30), (5, 12), (25, 40)):
        sink.write(0, sales(range(first, end)))
    summary = run(lane)
    assert (summary["landed"], summary["clean"], summary["duplicates"]) == (40, 40, 0)
    assert events(lane.topic) == list(range(40))


def test_missing_offsets_are_read_from_kafka_before_later_objects(landed_by, send):
    lane, sink = landed_by()
    send_sales(send, lane.topic, 30)
    sink.write(0, sales(range(10)))
    sink.put(sink.name(0, 10), b"")
    sink.write(0, sales(range(20, 30)))
    assert counts(run(lane))["clean"] == 30
    assert [offset for _, offset, _ in landed_rows(lane.topic)] == list(range(10, 20))


def test_a_late_object_counts_before_its_offsets_are_repaired(landed_by, send):
    lane, sink = landed_by(order_grace=timedelta(hours=1), group=None)
    lane = dataclasses.replace(lane, landing_grace=timedelta(hours=1))
    send_sales(send, lane.topic, 30)
    sink.write(0, sales(range(10)))
    sink.write(0, sales(range(20, 30)))
    assert counts(run(lane))["clean"] == 10
    sink.write(0, sales(range(10, 20)))
    assert counts(run(lane, "run-2"))["clean"] == 20
    assert landed_rows(lane.topic) == []


def test_a_damaged_object_is_a_gap_with_an_alarm(landed_by, send):
    lane, sink = landed_by(extension=".json.gz")
    send_sales(send, lane.topic, 30)
    sink.write(0, sales(range(10)))
    sink.put(sink.name(0, 10), sink.content(sales(range(10, 20)))[:-9])
    sink.write(0, sales(range(20, 30)))
    assert [gap.offsets.start for gap in verify(lane.topic).missing] == [10]
    message, is_open = alarms_of(raw_table(lane.topic))["landing_gap"]
    assert is_open
    assert sink.name(0, 10) in message
    assert counts(run(lane))["clean"] == 30
    assert alarms_of(raw_table(lane.topic))["landing_gap"][1] is False


def test_values_are_used_only_up_to_what_the_next_object_proves(landed_by, send):
    lane, sink = landed_by(records="values", group=None)
    send_sales(send, lane.topic, 30)
    sink.write(0, sales(range(10)))
    sink.write(0, sales(range(10, 20)))
    # The last object may still be written again.
    assert counts(run(lane))["clean"] == 10
    # Offset 15 has no line, as after a transaction: which offset a line has is not known.
    sink.write(0, {offset: value for offset, value in sales(range(10, 20)).items() if offset != 15})
    sink.write(0, sales(range(20, 30)))
    assert counts(run(lane, "run-2"))["clean"] == 10
    assert events(lane.topic) == list(range(20))
    assert [offset for _, offset, _ in landed_rows(lane.topic)] == list(range(10, 20))


def test_dense_values_count_although_kafka_no_longer_has_them(landed_by, send, admin):
    lane, sink = landed_by(records="values", is_dense=True)
    send_sales(send, lane.topic, 30)
    sink.write(0, sales(range(20)))
    sink.write(0, sales(range(8, 30)))
    delete_records(admin, lane.topic, 0, 30)
    assert counts(run(lane))["clean"] == 30
    assert events(lane.topic) == list(range(30))


def test_history_before_the_log_begins_counts(landed_by, send, admin, operations):
    lane, sink = landed_by()
    send_sales(send, lane.topic, 30)
    delete_records(admin, lane.topic, 0, 20)
    sink.write(0, sales(range(10, 30)))
    # A landing that is declared when the log has lost its beginning.
    from include.streams.lake.catalog import load_catalog

    load_catalog().drop_table(raw_table(lane.topic))
    create_landing_table(lane.topic)
    assert counts(run(lane))["clean"] == 20


def test_a_sensor_waits_until_an_object_has_landed(landed_by, send):
    lane, sink = landed_by()
    send_sales(send, lane.topic, 10)

    def ready(run_id: str) -> Readiness:
        of = Lane(
            name=lane.name,
            topic_name=lane.topic.name,
            run_id=run_id,
            conn_id=lane.conn_id,
            landing_grace_seconds=300,
            max_claim_age_seconds=300,
            objects=sink.source.as_json(),
        )
        return check_readiness(of, verify_too=False)

    assert ready("run-1") is Readiness.no_data
    sink.write(0, sales(range(10)))
    assert ready("run-1") is Readiness.ready
    run(lane)
    assert ready("run-2") is Readiness.no_data


def test_a_prefix_with_objects_of_an_earlier_log_is_refused(landed_by, send, admin):
    from include.streams.lake.catalog import load_catalog
    from include.streams.landing.tables import LandingTableMismatch

    lane, sink = landed_by()
    send_sales(send, lane.topic, 10)
    sink.write(0, sales(range(10)))
    run(lane)
    (gone,) = admin.delete_topics([lane.topic.name]).values()
    gone.result(30)
    load_catalog().drop_table(raw_table(lane.topic))
    (made,) = admin.create_topics([NewTopic(lane.topic.name, 1, 1)]).values()
    made.result(30)
    wait_for_topics(admin, lane.topic.name)
    with pytest.raises(LandingTableMismatch, match="earlier log"):
        create_landing_table(lane.topic)


def verify_command(capsys, *arguments: str) -> tuple[int, dict]:
    code = main(["verify", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_verify_lists_holes_and_doubles_of_objects(landed_by, send, capsys):
    lane, sink = landed_by(layout="aiven")
    send_sales(send, lane.topic, 30)
    sink.write(0, sales(range(10)))
    sink.write(0, sales(range(8, 12)))
    sink.write(0, sales(range(15, 28)))
    code, found = verify_command(capsys, sink.source.prefix, lane.topic.name, "--layout", "aiven")
    (partition,) = found["partitions"]
    assert code == 1
    assert (partition["holes"], partition["doubles"]) == ([[12, 15]], [[8, 10]])
    assert (partition["rows"], partition["waiting"]) == (27, 2)


def test_verify_compares_a_table_of_another_product(landed_by, send, capsys):
    from include.streams.lake.catalog import load_catalog

    lane, _ = landed_by()
    send_sales(send, lane.topic, 10)
    catalog = load_catalog()
    catalog.create_namespace_if_not_exists("foreign")
    name = f"foreign.t{uuid.uuid4().hex[:8]}"
    columns = {"kafka_p": pa.array([0] * 10, pa.int32()), "kafka_o": pa.array(range(10), pa.int64())}
    table = catalog.create_table(name, pa.table(columns).schema)
    table.append(pa.table(columns))
    arguments = (name, lane.topic.name, "--partition-column", "kafka_p", "--offset-column", "kafka_o")
    code, found = verify_command(capsys, *arguments)
    assert (code, found["is_right"]) == (0, True)
    table.append(pa.table({name: column.slice(3, 2) for name, column in columns.items()}))
    table.delete("kafka_o = 6")
    code, found = verify_command(capsys, *arguments)
    assert code == 1
    assert (found["partitions"][0]["holes"], found["partitions"][0]["doubles"]) == ([[6, 7]], [[3, 5]])
    # Without the names of the columns, the command says which there are.
    assert main(["verify", name, lane.topic.name]) == 1
    assert "kafka_o" in capsys.readouterr().err
