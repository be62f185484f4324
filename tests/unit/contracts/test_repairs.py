"""Repairs: what they take, what they leave alone, and that nothing but a ContractViolation comes out of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.streams.contracts import ContractViolation, Reason
from include.streams.contracts.breaking import broken
from include.streams.contracts.repairs import Repairs, to_document, to_value
from tests.unit.contracts.orders import ORDERS, ORDERS_V2, message, order


@pytest.fixture
def repairs() -> Repairs:
    made = Repairs()
    made.renamed(ORDERS, {"id": "order_id", "number": "quantity"})
    return made


def repaired(repairs: Repairs, value: bytes | None):
    return repairs.apply(ORDERS, value)


def refused(repairs: Repairs, value: bytes | None) -> ContractViolation:
    with pytest.raises(ContractViolation) as found:
        repairs.apply(ORDERS, value)
    return found.value


def test_a_message_that_keeps_its_contract_is_not_touched(repairs: Repairs):
    value = message() + b"  "
    found = repaired(repairs, value)
    assert (found.value, found.event, found.repairs) == (value, order(), ())


def test_renamed_fields_get_their_right_names_and_everything_else_stays(repairs: Repairs):
    found = repaired(repairs, message("order_id", "quantity", id="o-1", number=2, note="für Zoë"))
    assert found.event == order(note="für Zoë")
    assert found.event.event_id == "o-1"
    assert found.repairs == ("renamed id to order_id, number to quantity",)
    assert json.loads(found.value)["note"] == "für Zoë"


def test_one_of_several_renamed_fields_is_enough(repairs: Repairs):
    assert repaired(repairs, message("quantity", number=2)).event == order()


def test_with_both_names_there_it_is_not_guessed_which_value_was_meant(repairs: Repairs):
    assert refused(repairs, message(id="o-2")).reason is Reason.unknown_field


def test_the_same_bytes_come_out_every_time(repairs: Repairs):
    value = message("order_id", id="o-1")
    assert repaired(repairs, value).value == repaired(repairs, value).value


def test_what_no_repair_knows_is_refused_for_what_is_wrong_with_it(repairs: Repairs):
    for reason, value in broken(ORDERS, order()).items():
        assert refused(repairs, value).reason is reason
        assert refused(Repairs(), value).reason is reason


def test_a_repair_that_is_not_enough_says_what_is_still_wrong(repairs: Repairs):
    violation = refused(repairs, message("order_id", id="o-1", quantity="two"))
    assert (violation.reason, violation.detail) == (Reason.wrong_type, "quantity (int_type)")


def test_repairs_work_on_top_of_one_another_in_their_order(repairs: Repairs):
    @repairs.repair(ORDERS)
    def numbers_are_numbers(value: bytes) -> bytes | None:
        document = to_document(value)
        if document is None or not isinstance(document.get("quantity"), str):
            return None
        return to_value({**document, "quantity": int(document["quantity"])})

    found = repaired(repairs, message("order_id", "quantity", id="o-1", number="2"))
    assert found.event == order()
    assert found.repairs == ("renamed id to order_id, number to quantity", "numbers_are_numbers")
    # Its own fault: a repair that raises is a message that still fails, not a replay that stops.
    violation = refused(repairs, message(quantity="two"))
    assert (violation.reason, violation.detail) == (
        Reason.rejected,
        "the repair 'numbers_are_numbers' raised ValueError",
    )


def test_a_repair_may_say_itself_what_is_still_wrong():
    repairs = Repairs()

    @repairs.repair(ORDERS)
    def read_other_format(value: bytes) -> bytes | None:
        raise ContractViolation(Reason.missing_field, "price (missing)")

    assert refused(repairs, b"other").detail == "price (missing)"


def test_a_repair_may_not_make_what_the_contract_forbids():
    repairs = Repairs()

    @repairs.repair(ORDERS)
    def pad(value: bytes) -> bytes | None:
        return message() + b" " * ORDERS.max_bytes

    assert refused(repairs, b"not JSON").reason is Reason.too_large


def test_repairs_of_another_topic_are_not_tried(repairs: Repairs):
    assert repairs.of(ORDERS_V2) == {}
    assert list(repairs.of(ORDERS)) == ["renamed id to order_id, number to quantity"]
    with pytest.raises(ContractViolation):
        repairs.apply(ORDERS_V2, message("order_id", id="o-1"))


def test_a_message_without_a_value_is_given_to_no_repair():
    repairs = Repairs()

    @repairs.repair(ORDERS)
    def make(value: bytes) -> bytes | None:
        return message()

    assert refused(repairs, None).reason is Reason.tombstone


def test_a_name_that_the_contract_does_not_have_is_refused_at_once(repairs: Repairs):
    with pytest.raises(ValueError, match="no field 'odrer_id'"):
        repairs.renamed(ORDERS, {"id": "odrer_id"})


def test_two_repairs_of_one_name_are_refused(repairs: Repairs):
    with pytest.raises(ValueError, match="already"):
        repairs.renamed(ORDERS, {"id": "order_id", "number": "quantity"})


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[1]",
        b"\xff",
        b'{"a":1,"a":2}',
        b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' * 50_000,
    ],
    ids=["empty", "no object", "no UTF-8", "a name twice", "deep", "a huge number", "deep objects"],
)
def test_what_two_readers_could_read_differently_is_no_document(value: bytes):
    assert to_document(value) is None


@given(
    st.binary()
    | st.text().map(str.encode)
    | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_whatever_the_bytes_are_they_are_repaired_or_refused(value: bytes):
    made = Repairs()
    made.renamed(ORDERS, {"id": "order_id"})
    with pytest.raises(ContractViolation):
        made.apply(ORDERS, value)
