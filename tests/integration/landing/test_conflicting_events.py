"""A repeated event id with other content becomes a dead letter, in any run and on any day."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest

from include.streams.kafka.producer import DeliveryFailed
from include.streams.lake.datafiles import filesystem
from include.streams.landing import conflicts
from include.streams.landing.balance import finish
from include.streams.landing.clean import commit_clean
from include.streams.landing.index import LandingIndex
from include.streams.landing.planning import claim_landed
from include.streams.landing.tables import load_landing_table
from include.streams.landing.validation import validate_unit
from tests.integration.kafka.conftest import open_claims, read_all
from tests.integration.landing.conftest import delete_records
from tests.integration.landing.test_run import Sale, clean_rows, consumer, counts, land, run, sale, sales

pytestmark = pytest.mark.integration
__all__ = ["consumer", "sales"]


def reasons(topic) -> list[tuple[bytes | None, bytes]]:
    return [(record.value(), dict(record.headers())["dlq.reason"]) for record in read_all(topic.dead_letter_name)]


def test_a_known_event_id_with_other_content_becomes_a_dead_letter(consumer, send):
    lane = consumer()
    values = [sale(1), sale(2), sale(1, amount=7), sale(2)]
    send(lane.topic, *values, key=b"key")
    land(lane.topic, 0, 0, *values)
    found = counts(run(lane))
    assert found == {"landed": 4, "clean": 2, "dead_lettered": 1, "duplicates": 1, "without_record": 0}
    assert clean_rows(lane.topic) == [(0, 0, "1"), (0, 1, "2")]
    assert reasons(lane.topic) == [(values[2], b"conflict")]
    assert read_all(lane.topic.dead_letter_name)[0].key() == b"key"

    later = [sale(2, note="x"), sale(1), sale(3)]
    send(lane.topic, *later)
    land(lane.topic, 0, 4, *later)
    found = counts(run(lane, "run-2"))
    assert found == {"landed": 3, "clean": 1, "dead_lettered": 1, "duplicates": 1, "without_record": 0}
    assert reasons(lane.topic)[1:] == [(later[0], b"conflict")]
    assert open_claims(lane) == 0


def test_a_repeated_event_on_another_day_is_found(consumer, send):
    lane = consumer()
    for number, day in enumerate((1, 20)):
        send(lane.topic, sale(1, day=day))
        land(lane.topic, 0, number, sale(1, day=day))
        summary = run(lane, f"run-{number}")
    assert counts(summary) == {"landed": 1, "clean": 0, "dead_lettered": 1, "duplicates": 0, "without_record": 0}
    assert clean_rows(lane.topic) == [(0, 0, "1")]


class Dated(Sale):
    event_id_sql: ClassVar[str | None] = "number || utc_text(sold_at)"

    @property
    def event_id(self) -> str:
        return f"{self.number}{self.sold_at:%Y-%m-%dT%H:%M:%SZ}"


def test_event_ids_with_a_time_differ_between_days(consumer, send, sales):
    lane = consumer(sales(Dated))
    values = [sale(1, day=1), sale(1, day=2), sale(1, day=2, amount=3)]
    send(lane.topic, *values)
    land(lane.topic, 0, 0, *values)
    found = counts(run(lane))
    assert found == {"landed": 3, "clean": 2, "dead_lettered": 1, "duplicates": 0, "without_record": 0}


def test_a_run_killed_before_it_records_its_conflicts_ends_the_same(consumer, send, monkeypatch):
    lane = consumer()
    values = [sale(1), sale(1, amount=2), sale(1)]
    send(lane.topic, *values)
    land(lane.topic, 0, 0, *values)
    units = claim_landed(lane, "run-1")
    validated = [validate_unit(lane, unit, "run-1") for unit in units]
    with monkeypatch.context() as patch:
        patch.setattr(
            conflicts.dead_letters,
            "publish_dead_letters",
            lambda *_, **__: (_ for _ in ()).throw(DeliveryFailed("refused")),
        )
        with pytest.raises(DeliveryFailed):
            commit_clean(lane, validated, "run-1")
    assert clean_rows(lane.topic) == [(0, 0, "1")], "a dead letter that is refused keeps no good row back"
    first = commit_clean(lane, validated, "run-1")
    # The conflict is recorded now, so neither a retry of this task nor a cleared run sends it again.
    assert commit_clean(lane, validated, "run-1") == first
    again = commit_clean(lane, [validate_unit(lane, unit, "run-1") for unit in units], "run-1")
    assert counts(again) == counts(first)
    assert counts(first) == {"landed": 3, "clean": 1, "dead_lettered": 1, "duplicates": 1, "without_record": 0}
    assert reasons(lane.topic) == [(values[1], b"conflict")]
    finish(lane, first, "run-1")


def test_a_conflict_without_its_kafka_record_keeps_its_landed_text(consumer, send, admin):
    lane = consumer()
    values = [sale(1), sale(1, amount=2), sale(3)]
    send(lane.topic, *values, key=b"key")
    land(lane.topic, 0, 0, *values)
    delete_records(admin, lane.topic, 0, 2)
    assert counts(run(lane))["dead_lettered"] == 1
    (letter,) = read_all(lane.topic.dead_letter_name)
    assert (letter.value(), letter.key()) == (values[1], None)
    assert dict(letter.headers())["dlq.landed_text"] == b"true"


def test_a_conflict_without_record_and_file_keeps_its_validated_row(consumer, send, admin):
    lane = consumer()
    values = [sale(1), sale(2), sale(1, amount=2)]
    send(lane.topic, *values)
    for offset, value in enumerate(values):
        land(lane.topic, 0, offset, value)
    validated = [validate_unit(lane, unit, "run-1") for unit in claim_landed(lane, "run-1")]
    delete_records(admin, lane.topic, 0, 3)
    (file,) = LandingIndex(load_landing_table(lane.topic)).files(0, 2)
    table = load_landing_table(lane.topic)
    filesystem(table.io, file.path).rm(file.path)
    found = counts(commit_clean(lane, validated, "run-1"))
    assert found == {"landed": 3, "clean": 2, "dead_lettered": 1, "duplicates": 0, "without_record": 0}
    (letter,) = read_all(lane.topic.dead_letter_name)
    content = json.loads(letter.value())
    assert (content["number"], content["amount"]) == ("1", 2)
    assert dict(letter.headers())["dlq.landed_text"] == b"true"
