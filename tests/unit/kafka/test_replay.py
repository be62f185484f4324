"""Dead-letter records as a replay reads them, and the records that a selection takes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from include.streams.contracts import Reason
from include.streams.kafka.dead_letter_records import DeadLetterRecord, RecordHeaders
from include.streams.kafka.dead_letters import DeadLetter, added_headers
from include.streams.kafka.messages import Message
from include.streams.kafka.replay import as_table
from include.streams.kafka.replay_selection import Selection

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def record(topic: str = "orders", headers: Any = (), **changes: Any) -> Message:
    fields = {
        "topic": topic,
        "topic_id": "id",
        "partition": 2,
        "offset": 7,
        "timestamp": AT,
        "key": b"k",
        "value": b"v",
    }
    return Message(**{**fields, "headers": tuple(headers), **changes})


def dead(original: Message, reason: Reason = Reason.not_json) -> Message:
    """The dead letter of a message, as `DeadLetterWriter.publish` writes it."""
    added = added_headers(DeadLetter(original, reason, "why"), consumer="shop", run_id="run")
    return record(f"{original.topic}.dlq", [*original.headers, *added], partition=0, offset=99)


def test_a_dead_letter_is_split_into_origin_and_original_headers():
    letter = DeadLetterRecord.of(dead(record(headers=[("trace", b"1"), ("trace", b"2"), ("empty", None)])), "orders")
    assert letter.origin == RecordHeaders(Reason.not_json, 2, 7, AT.isoformat(), "shop")
    assert letter.headers == (("trace", b"1"), ("trace", b"2"), ("empty", None))
    assert letter.replays == 0


def test_a_dead_letter_with_only_the_landed_text_says_so():
    added = added_headers(
        DeadLetter(record(key=None), Reason.not_json, "why", landed_text=True), consumer="shop", run_id="r"
    )
    letter = DeadLetterRecord.of(record("orders.dlq", added, key=None), "orders")
    assert letter.origin == RecordHeaders(Reason.not_json, 2, 7, AT.isoformat(), "shop", landed_text=True)


def test_a_replayed_message_has_the_original_and_the_replay_headers():
    letter = DeadLetterRecord.of(dead(record(headers=[("trace", b"1")])), "orders")
    assert letter.headers_for_replay("orders", "run 2") == [
        ("trace", b"1"),
        ("replay.of", b"orders-2@7"),
        ("replay.count", b"1"),
        ("replay.run_id", b"run 2"),
    ]


def test_a_message_that_fails_again_after_a_replay_has_a_higher_count():
    first = DeadLetterRecord.of(dead(record(headers=[("trace", b"1")])), "orders")
    again = record(headers=first.headers_for_replay("orders", "run 1"), offset=8)
    second = DeadLetterRecord.of(dead(again), "orders")
    assert second.replays == 1
    assert second.headers_for_replay("orders", "run 2") == [
        ("trace", b"1"),
        ("replay.of", b"orders-2@8"),
        ("replay.count", b"2"),
        ("replay.run_id", b"run 2"),
    ]


def test_a_dead_letter_that_was_copied_to_the_topic_keeps_its_headers():
    """Its own `dlq.` headers are the last ones; the earlier ones belong to the copied dead letter."""
    copied = record(headers=dead(record()).headers, offset=50)
    letter = DeadLetterRecord.of(dead(copied, Reason.rejected), "orders")
    assert letter.origin == RecordHeaders(Reason.rejected, 2, 50, AT.isoformat(), "shop")
    assert letter.headers == copied.headers


def test_a_message_that_was_never_on_the_topic_is_named_by_its_dead_letter():
    letter = DeadLetterRecord.of(dead(record(partition=-1, offset=-1)), "orders")
    assert letter.origin
    assert letter.origin.source is None
    assert letter.headers_for_replay("orders", "run")[0] == ("replay.of", b"orders.dlq-0@99")


@pytest.mark.parametrize("count", [b"", b"many", b"-1", b"0", b"9" * 5000, None])
def test_a_replay_count_that_is_no_number_counts_as_one(count: bytes | None):
    """If it counted as no replay, a message that always fails could be replayed for ever."""
    assert DeadLetterRecord.of(dead(record(headers=[("replay.count", count)])), "orders").replays == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dlq.reason", b"because"),
        ("dlq.topic", b"payments"),
        ("dlq.partition", b"two"),
        ("dlq.partition", "٣".encode()),
        ("dlq.offset", b"9" * 30),
        ("dlq.offset", None),
        ("dlq.timestamp", b"\xff"),
        ("dlq.consumer", b"a\x00b"),
        ("dlq.consumer", b"\x1b[2J"),
        ("dlq.consumer", b"x" * 10_000),
    ],
)
def test_dlq_headers_of_other_producers_give_no_origin(name: str, value: bytes | None):
    headers = [(key, value if key == name else content) for key, content in dead(record()).headers]
    assert DeadLetterRecord.of(record("orders.dlq", headers), "orders").origin is None


def test_a_record_without_dlq_headers_has_no_origin_and_keeps_its_headers():
    letter = DeadLetterRecord.of(record("orders.dlq", [("trace", b"1"), ("dlq.offset", b"1")]), "orders")
    assert letter.origin is None
    assert letter.headers == (("trace", b"1"), ("dlq.offset", b"1"))


@given(st.lists(st.tuples(st.sampled_from(["dlq.reason", "dlq.offset", "replay.count", "a"]), st.none() | st.binary())))
def test_any_headers_can_be_read(headers: list):
    letter = DeadLetterRecord.of(record("orders.dlq", headers), "orders")
    assert letter.replays >= 0
    assert letter.headers_for_replay("orders", "run")


def selection(**params: Any) -> Selection:
    return Selection.model_validate({"topic": "orders", **params})


def rejected(**changes: Any) -> RecordHeaders:
    fields = {"reason": Reason.not_json, "partition": 2, "offset": 7, "timestamp": "", "consumer": "shop"}
    return RecordHeaders(**{**fields, **changes})


@pytest.mark.parametrize(
    ("params", "taken"),
    [
        ({}, True),
        ({"reason": "not_json"}, True),
        ({"reason": "rejected"}, False),
        ({"since": AT}, True),
        ({"since": AT + timedelta(milliseconds=1)}, False),
        ({"until": AT}, False),
        ({"until": AT + timedelta(milliseconds=1)}, True),
        ({"partition": 2}, True),
        ({"partition": 0}, False),
        ({"partition": 2, "from_offset": 7}, True),
        ({"partition": 2, "from_offset": 8}, False),
        ({"partition": 2, "until_offset": 7}, False),
        ({"partition": 2, "from_offset": 7, "until_offset": 8}, True),
    ],
)
def test_windows_include_their_beginning_and_exclude_their_end(params: dict, taken: bool):
    assert selection(**params).takes(AT, rejected()) is taken


def test_a_dead_letter_without_time_or_offset_is_outside_of_a_window():
    assert selection().takes(None, None)
    assert selection(since=AT).takes(AT, None)
    assert not selection(since=AT).takes(None, rejected())
    assert not selection(partition=2).takes(AT, None)
    assert not selection(reason="not_json").takes(AT, None)
    assert selection().takes(AT, rejected(partition=-1, offset=-1))
    assert not selection(partition=0, until_offset=5).takes(AT, rejected(partition=-1, offset=-1))


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"since": AT, "until": AT}, "window of time is empty"),
        ({"partition": 1, "from_offset": 5, "until_offset": 5}, "window of offsets is empty"),
        ({"partition": 1, "until_offset": 0}, "window of offsets is empty"),
        ({"from_offset": 5}, "needs a partition"),
        ({"since": "2026-01-02T03:04:05"}, "timezone"),
        ({"limit": 0}, "greater than 0"),
        ({"reason": "because"}, "reason"),
        ({"offset": 5}, "offset"),
    ],
)
def test_a_selection_that_cannot_match_is_refused(params: dict, why: str):
    with pytest.raises(ValidationError, match=why):
        selection(**params)


def test_by_default_a_replay_is_a_dry_run_without_repetition():
    assert (selection().dry_run, selection().again) == (True, False)


def test_the_table_shows_counts_rows_and_the_number_of_further_rows():
    row = {
        "dead_letter": "0@1",
        "message": "2@7",
        "reason": "not_json",
        "outcome": "failing",
        "repairs": "",
        "detail": "x",
    }
    report = {
        "topic": "orders",
        "dry_run": True,
        "counts": [{"count": 3, "outcome": "failing", "reason": "not_json"}],
        "dead_letters": [row],
    }
    assert as_table(report).splitlines() == [
        "dead letters of orders (nothing was changed: dry run)",
        "",
        "reason    outcome  count",
        "not_json  failing  3",
        "",
        "dead_letter  message  reason    outcome  repairs  detail",
        "0@1          2@7      not_json  failing           x",
        "and 2 more",
    ]
