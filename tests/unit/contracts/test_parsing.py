"""The messages that a topic accepts, and the reasons for messages that it refuses."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from pydantic import field_validator

from include.streams.contracts import Contract, ContractViolation, Reason, Topic
from include.streams.contracts.types import Identifier
from tests.unit.contracts.orders import ORDERS, ORDERS_V2, OrderV1, message, order


def refusal(value: bytes | None, topic: Topic = ORDERS) -> ContractViolation:
    with pytest.raises(ContractViolation) as caught:
        topic.parse(value)
    return caught.value


def test_a_valid_message_becomes_its_event():
    assert ORDERS.parse(message()) == order()


def test_a_time_with_another_offset_becomes_the_same_time_in_utc():
    event = ORDERS.parse(message(placed_at="2026-01-02T05:34:05+02:30"))
    assert event == order()
    assert isinstance(event, OrderV1)
    assert event.placed_at.tzinfo is UTC


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.tombstone),
        (b"", Reason.not_json),
        (b" " * 1001, Reason.too_large),
        (message(note="\xff" * 10).replace(b"\\u00ff", b"\xff"), Reason.not_utf8),
        (b"\xed\xa0\x80", Reason.not_utf8),
        (b"{", Reason.not_json),
        (b"\xef\xbb\xbf" + message(), Reason.not_json),
        (message() + message(), Reason.not_json),
        (message().replace(b"9.5", b"NaN"), Reason.not_json),
        (message().replace(b"9.5", b"Infinity"), Reason.not_json),
        (message().replace(b"9.5", b"9.5e"), Reason.not_json),
        (message(note="x").replace(b'"x"', b'"\\ud800"'), Reason.not_json),
        (b"[" * 900, Reason.not_json),
        (message().replace(b'"quantity": 2', b'"quantity": 2, "quantity": 3'), Reason.not_json),
        (message().replace(b'"version": 1', b'"version": 2, "version": 1'), Reason.not_json),
        (message().replace(b'"price"', b'"pr\\u0069ce": 1, "price"'), Reason.not_json),
        (b"[]", Reason.wrong_type),
        (b"null", Reason.wrong_type),
        (b"17", Reason.wrong_type),
        (message(version=2), Reason.wrong_version),
        (message(version="1"), Reason.wrong_version),
        (message(version=None), Reason.wrong_version),
        (message(version=True), Reason.wrong_version),
        (message().replace(b'"version": 1', b'"version": 1.0'), Reason.wrong_version),
        (message("version"), Reason.missing_field),
        (message("price"), Reason.missing_field),
        (message(extra=1), Reason.unknown_field),
        (message(quantity="2"), Reason.wrong_type),
        (message(quantity=2.0), Reason.wrong_type),
        (message(quantity=None), Reason.wrong_type),
        (message(price="9.5"), Reason.wrong_type),
        (message(price=True), Reason.wrong_type),
        (message(order_id=17), Reason.wrong_type),
        (message(placed_at="2026-01-02T03:04:05"), Reason.wrong_type),
        (message(placed_at="2026-01-02 03:04:05Z"), Reason.wrong_type),
        (message(placed_at="2026-02-30T03:04:05Z"), Reason.wrong_type),
        (message(placed_at="1767323045"), Reason.wrong_type),
        (message(placed_at=1767323045), Reason.wrong_type),
        (message(ship_on="0"), Reason.wrong_type),
        (message(ship_on="2026-02-30"), Reason.wrong_type),
        (message(ship_on="2026-02-03T00:00:00Z"), Reason.wrong_type),
        (message(quantity=0), Reason.out_of_bounds),
        (message(quantity=2**70), Reason.out_of_bounds),
        (message().replace(b"9.5", b"1e400"), Reason.out_of_bounds),
        (message().replace(b"9.5", b"9" * 400), Reason.out_of_bounds),
        (message(kind="gift"), Reason.out_of_bounds),
        (message(order_id="x" * 101), Reason.out_of_bounds),
        (message(order_id="a b"), Reason.out_of_bounds),
        (message(order_id="o-1\n"), Reason.out_of_bounds),
        (message(order_id="٣"), Reason.out_of_bounds),
        (message(note="a\u0000b"), Reason.out_of_bounds),
        (message(note="\u001b[2J"), Reason.out_of_bounds),
        (message(placed_at="0001-01-01T00:00:00+23:00"), Reason.out_of_bounds),
        (message(placed_at="9999-12-31T23:59:59-23:00"), Reason.out_of_bounds),
        (message(ship_on="9999-12-31"), Reason.out_of_bounds),
    ],
)
def test_an_invalid_message_is_refused_with_its_reason(value: bytes | None, reason: Reason):
    assert refusal(value).reason is reason


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\xff" * 1001, Reason.too_large),
        (b"{\xff", Reason.not_utf8),
        (message("price", version=2, extra=1, quantity="2"), Reason.wrong_version),
        (message("price", extra=1, quantity="2"), Reason.missing_field),
        (message(extra=1, quantity="2"), Reason.unknown_field),
        (message(quantity="2", price=-1), Reason.wrong_type),
    ],
)
def test_the_first_of_several_reasons_counts(value: bytes, reason: Reason):
    assert refusal(value).reason is reason


def test_a_value_that_looks_like_a_name_is_no_duplicate_name():
    assert ORDERS.parse(message(note='he said "price": 5')) == order(note='he said "price": 5')


def test_the_detail_names_fields_and_error_types_but_no_value():
    violation = refusal(message(quantity="secret", price=-77, note="s" * 60, **{"secret name": 1, "plain": 1}))
    assert violation.detail == (
        "(name not shown) (extra_forbidden), plain (extra_forbidden), quantity (int_type), "
        "note (string_too_long), price (greater_than_equal)"
    )
    for value in ("secret", "77", "sss"):
        assert value not in str(violation)


def test_the_detail_is_short_for_any_message():
    assert len(refusal(message(**{f"f{n}": 1 for n in range(80)})).detail) < 300
    assert len(refusal(message(**{"x" * 800: 1})).detail) < 100


def test_a_violation_can_be_pickled():
    copy = pickle.loads(pickle.dumps(refusal(message(extra=1))))
    assert (copy.reason, copy.detail) == (Reason.unknown_field, "extra (extra_forbidden)")


def test_an_error_in_a_contracts_own_code_is_a_violation():
    class Faulty(Contract):
        version: Literal[1]
        name: Identifier

        @field_validator("name")
        @classmethod
        def check(cls, value: str) -> str:
            return {"known": value}[value]

        @property
        def event_id(self) -> str:
            return self.name

    topic = Topic("faulty", Faulty, key="name", partitions=1, retention=None)
    assert refusal(b'{"version": 1, "name": "other"}', topic).reason is Reason.rejected


def test_equal_events_are_serialized_to_equal_bytes():
    key, value = ORDERS.serialize(order())
    assert key == b"o-1"
    assert value == (
        b'{"version":1,"order_id":"o-1","placed_at":"2026-01-02T03:04:05Z","quantity":2,"price":9.5,'
        b'"kind":"retail","ship_on":null,"note":null}'
    )
    assert ORDERS.serialize(ORDERS.parse(message(ship_on=None)))[1] == value


def test_an_event_of_another_contract_is_not_serialized():
    with pytest.raises(TypeError, match=r"topic orders\.v2 holds OrderV2, not OrderV1"):
        ORDERS_V2.serialize(order())


def test_an_event_that_model_copy_made_invalid_is_not_serialized():
    with pytest.raises(ContractViolation) as caught:
        ORDERS.serialize(order().model_copy(update={"quantity": 0}))
    assert caught.value.reason is Reason.out_of_bounds


def test_an_event_created_in_code_is_checked_as_strictly():
    for field, value in (
        ("quantity", "2"),
        ("placed_at", datetime(2026, 1, 2)),
        ("placed_at", "2026-01-02T03:04:05Z"),
        ("placed_at", datetime(2026, 1, 2, tzinfo=UTC) + timedelta(days=365 * 300)),
        ("price", float("nan")),
        ("version", True),
    ):
        with pytest.raises(ValueError, match=field) as caught:
            order(**{field: value})
        assert "input_value" not in str(caught.value)


def test_two_versions_have_topics_of_their_own():
    new = json.dumps(
        {
            "version": 2,
            "order_id": "o-1",
            "placed_at": "2026-01-02T03:04:05Z",
            "positions": [{"article": "pipe", "quantity": 2}, {"article": "valve", "quantity": 1}],
        }
    ).encode()
    assert ORDERS.parse(message()).event_id == ORDERS_V2.parse(new).event_id == "o-1"
    assert refusal(new, ORDERS).reason is Reason.wrong_version
    assert refusal(message(), ORDERS_V2).reason is Reason.wrong_version
    assert ORDERS.name != ORDERS_V2.name


def test_a_name_that_occurs_twice_in_a_nested_object_is_refused():
    value = (
        b'{"version":2,"order_id":"o-1","placed_at":"2026-01-02T03:04:05Z",'
        b'"positions":[{"article":"pipe","quantity":2,"quantity":3}]}'
    )
    assert refusal(value, ORDERS_V2).reason is Reason.not_json
    assert ORDERS_V2.parse(value.replace(b',"quantity":3', b""))
