"""Repairs: the messages that they change, those that they do not change, and the only exception that they raise."""

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
    repairs = Repairs()
    repairs.renamed(ORDERS, {"id": "order_id", "number": "quantity"})
    return repairs


def repaired(repairs: Repairs, value: bytes | None):
    return repairs.apply(ORDERS, value)


def refused(repairs: Repairs, value: bytes | None) -> ContractViolation:
    with pytest.raises(ContractViolation) as caught:
        repairs.apply(ORDERS, value)
    return caught.value


def test_a_valid_message_is_not_changed(repairs: Repairs):
    value = message() + b"  "
    result = repaired(repairs, value)
    assert (result.value, result.event, result.repairs) == (value, order(), ())


def test_renamed_fields_get_their_correct_names_and_others_are_kept(repairs: Repairs):
    result = repaired(repairs, message("order_id", "quantity", id="o-1", number=2, note="für Zoë"))
    assert result.event == order(note="für Zoë")
    assert result.event.event_id == "o-1"
    assert result.repairs == ("renamed id to order_id, number to quantity",)
    assert json.loads(result.value)["note"] == "für Zoë"


def test_one_wrong_name_of_several_is_enough_for_a_repair(repairs: Repairs):
    assert repaired(repairs, message("quantity", number=2)).event == order()


def test_a_message_with_both_names_of_a_field_is_not_repaired(repairs: Repairs):
    assert refused(repairs, message(id="o-2")).reason is Reason.unknown_field


def test_repairing_a_message_twice_gives_equal_bytes(repairs: Repairs):
    value = message("order_id", id="o-1")
    assert repaired(repairs, value).value == repaired(repairs, value).value


def test_without_a_matching_repair_a_message_is_refused_with_its_reason(repairs: Repairs):
    for reason, value in broken(ORDERS, order()).items():
        assert refused(repairs, value).reason is reason
        assert refused(Repairs(), value).reason is reason


def test_a_message_that_is_still_invalid_is_refused_with_the_new_reason(repairs: Repairs):
    violation = refused(repairs, message("order_id", id="o-1", quantity="two"))
    assert (violation.reason, violation.detail) == (Reason.wrong_type, "quantity (int_type)")


def test_repairs_are_applied_one_after_the_other_in_their_order(repairs: Repairs):
    @repairs.repair(ORDERS)
    def numbers_are_numbers(value: bytes) -> bytes | None:
        document = to_document(value)
        if document is None or not isinstance(document.get("quantity"), str):
            return None
        return to_value({**document, "quantity": int(document["quantity"])})

    result = repaired(repairs, message("order_id", "quantity", id="o-1", number="2"))
    assert result.event == order()
    assert result.repairs == ("renamed id to order_id, number to quantity", "numbers_are_numbers")
    # If a repair raises an error, its message still fails, but the replay does not stop.
    violation = refused(repairs, message(quantity="two"))
    assert (violation.reason, violation.detail) == (
        Reason.rejected,
        "the repair 'numbers_are_numbers' raised ValueError",
    )


def test_a_repair_may_raise_the_violation_itself():
    repairs = Repairs()

    @repairs.repair(ORDERS)
    def read_other_format(value: bytes) -> bytes | None:
        raise ContractViolation(Reason.missing_field, "price (missing)")

    assert refused(repairs, b"other").detail == "price (missing)"


def test_the_result_of_a_repair_must_meet_the_contract():
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


def test_a_tombstone_is_not_passed_to_a_repair():
    repairs = Repairs()

    @repairs.repair(ORDERS)
    def make(value: bytes) -> bytes | None:
        return message()

    assert refused(repairs, None).reason is Reason.tombstone


def test_renaming_to_a_field_that_the_contract_lacks_is_refused(repairs: Repairs):
    with pytest.raises(ValueError, match="no field 'odrer_id'"):
        repairs.renamed(ORDERS, {"id": "odrer_id"})


def test_two_repairs_of_the_same_name_are_refused(repairs: Repairs):
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
def test_an_ambiguous_or_invalid_value_is_no_document(value: bytes):
    assert to_document(value) is None


@given(
    st.binary()
    | st.text().map(str.encode)
    | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_any_invalid_bytes_are_refused_without_another_exception(value: bytes):
    repairs = Repairs()
    repairs.renamed(ORDERS, {"id": "order_id"})
    with pytest.raises(ContractViolation):
        repairs.apply(ORDERS, value)
