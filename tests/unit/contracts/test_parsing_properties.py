"""Any bytes are an event or a ContractViolation, and a serialized event can be parsed again."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from include.streams.contracts import Contract, ContractViolation
from tests.unit.contracts.orders import ORDERS, Kind, OrderV1, message, order

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["2026-01-02T03:04:05Z", "0001-01-01T00:00:00+23:59", "retail", "o-1", "2026-01-02"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from([*OrderV1.model_fields, "other"])


def outcome(value: bytes) -> Contract | ContractViolation:
    try:
        return ORDERS.parse(value)
    except ContractViolation as violation:
        return violation


def assert_event_or_violation(value: bytes) -> None:
    result = outcome(value)
    if isinstance(result, ContractViolation):
        assert len(result.detail) <= 400
        assert result.detail.isprintable()
    else:
        json.loads(value.decode())  # an accepted message is UTF-8 and JSON for other readers too
        assert ORDERS.parse(ORDERS.serialize(result)[1]) == result
        assert result.event_id


@given(st.binary(max_size=1100))
def test_any_bytes_are_an_event_or_a_violation(value: bytes):
    assert_event_or_violation(value)


@given(json_values)
def test_any_json_is_an_event_or_a_violation(document: Any):
    assert_event_or_violation(json.dumps(document).encode())


@given(st.dictionaries(field_names, json_values, max_size=3))
@settings(max_examples=300)
def test_a_message_with_replaced_fields_is_an_event_or_a_violation(changes: dict[str, Any]):
    assert_event_or_violation(message(**changes))


@given(st.data())
@settings(max_examples=300)
def test_a_message_with_replaced_bytes_is_an_event_or_a_violation(data: st.DataObject):
    value = message(note="text")
    start = data.draw(st.integers(0, len(value)))
    end = data.draw(st.integers(start, min(len(value), start + 4)))
    assert_event_or_violation(value[:start] + data.draw(st.binary(max_size=6)) + value[end:])


@given(st.lists(st.tuples(field_names, json_values), max_size=12))
def test_a_message_with_a_repeated_name_is_a_violation(members: list[tuple[str, Any]]):
    content = ", ".join(f"{json.dumps(name)} : {json.dumps(value)}" for name, value in members)
    value = f"{{{content}}}".encode()
    assert_event_or_violation(value)
    if len({name for name, _ in members}) < len(members):
        assert isinstance(outcome(value), ContractViolation)


zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
orders = st.builds(
    order,
    order_id=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,99}", fullmatch=True),
    placed_at=st.datetimes(datetime(1970, 1, 2), datetime(2199, 12, 30), timezones=zones | st.just(UTC)),
    quantity=st.integers(1, 1000),
    price=st.floats(0, 1e6),
    kind=st.sampled_from(Kind),
    ship_on=st.none() | st.dates(date(1970, 1, 1), date(2199, 12, 31)),
    note=st.none()
    | st.text(
        st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\x7f").filter(
            lambda character: character >= " " or character in "\t\n\r"
        ),
        max_size=50,
    ),
)


@given(orders)
def test_a_serialized_event_is_parsed_to_an_equal_event(event: OrderV1):
    key, value = ORDERS.serialize(event)
    assert key.decode() == event.order_id
    parsed = ORDERS.parse(value)
    assert parsed == event
    assert parsed.event_id == event.event_id
    assert ORDERS.serialize(parsed) == (key, value)
