"""Every record becomes a message: an exception would stop a whole claim, at every retry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.streams.kafka.dead_letters import DeadLetter, added_headers
from include.streams.kafka.messages import EPOCH, Message

LAST = datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)


def record(milliseconds: int = 0, kind: int = 1, headers: Any = None, value: bytes | None = b"") -> Any:
    def read_headers():
        if isinstance(headers, Exception):
            raise headers
        return headers

    return SimpleNamespace(
        timestamp=lambda: (kind, milliseconds),
        topic=lambda: "orders",
        partition=lambda: 0,
        offset=lambda: 7,
        headers=read_headers,
        key=lambda: None,
        value=lambda: value,
    )


@given(
    milliseconds=st.integers(-(2**63), 2**63 - 1) | st.integers(-(10**14), 3 * 10**14),
    kind=st.sampled_from([0, 1, 2]),
    headers=st.none() | st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=4),
    value=st.none() | st.binary(max_size=10),
)
def test_every_record_becomes_a_message_and_added_headers(milliseconds, kind, headers, value):
    message = Message.of(record(milliseconds, kind, headers, value), "id")
    assert message.headers == tuple(headers or ())
    assert message.size_bytes >= len(value or b"")
    if message.timestamp is not None:
        assert message.timestamp == EPOCH + timedelta(milliseconds=milliseconds)
    elif kind and milliseconds != -1:
        assert message.timestamp_ms == milliseconds
        assert str(milliseconds) in message.unreadable[0]
    added = dict(added_headers(DeadLetter(message, "not_json", "detail"), consumer="c", run_id="r"))
    assert all(value is not None and value.decode().isprintable() for value in added.values())
    assert ("dlq.unreadable" in added) == bool(message.unreadable)


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        (0, EPOCH),
        (-2, datetime(1969, 12, 31, 23, 59, 59, 998_000, tzinfo=UTC)),
        (-1, None),
        (-62_135_596_800_000, datetime(1, 1, 1, tzinfo=UTC)),
        (-62_135_596_800_001, None),
        (253_402_300_799_999, LAST),
        (253_402_300_800_000, None),
        (1_764_140_000_000_000, None),
    ],
)
def test_a_timestamp_is_a_time_of_the_years_1_to_9999_or_none(milliseconds, expected):
    assert Message.of(record(milliseconds), "id").timestamp == expected


def test_unreadable_headers_are_named_and_left_out():
    message = Message.of(record(headers=SystemError("a name is not UTF-8")), "id")
    assert message.headers == ()
    assert message.unreadable == ("headers: the name of one is not UTF-8",)


@pytest.mark.parametrize("detail", ["\ud800", "a\0b", "x" * 5_000])
def test_any_detail_of_an_effect_can_be_stored_and_sent(detail):
    letter = DeadLetter(Message.of(record(), "id"), "rejected", detail)
    assert len(letter.detail) <= 1_000
    assert "\0" not in letter.detail
    assert letter.detail.encode()
