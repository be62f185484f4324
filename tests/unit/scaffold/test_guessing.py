"""The type and the bounds that are guessed from values."""

from __future__ import annotations

import math

import pytest

from scaffold.guessing import guess, wider


@pytest.mark.parametrize(
    ("values", "expected", "bounds"),
    [
        ([True, False], "bool", {}),
        ([1, 20], "int", {"ge": "0", "le": "10**5"}),
        ([-7, 2], "int", {"ge": "-10**4", "le": "10**4"}),
        ([2**62], "int", {"ge": "0", "le": "2**63 - 1"}),
        ([1, 2.5], "float", {"ge": "0", "le": "10**4"}),
        (["2026-01-01T00:00:00Z"], "UtcTime", {}),
        (["2026-01-01"], "Day", {}),
        (["2026-13-01"], "Line", {"max_length": "200"}),
        (["a\nb"], "Text", {"max_length": "200"}),
        (["x" * 60], "Line", {"max_length": "500"}),
    ],
)
def test_a_guess_leaves_room(values, expected, bounds):
    found = guess(values)
    assert found
    assert (found.name, found.bounds) == (expected, bounds)
    assert not found.is_known


@pytest.mark.parametrize("values", [[1, "1"], [True, 1], [2**63], ["a\0b"], ["x" * 20_000], [None], [1, math.inf]])
def test_values_that_no_type_takes_have_no_guess(values):
    assert guess(values) is None


def test_an_id_is_an_identifier_if_it_can_be():
    assert [guess([text], is_id=True).name for text in ("a-1", "a b", "x" * 101)] == ["Identifier", "Line", "Line"]


@pytest.mark.parametrize(
    ("values", "schema", "bounds", "is_known"),
    [
        ([5], {"minimum": 1, "maximum": 9}, {"ge": "1", "le": "9"}, True),
        ([5], {"exclusiveMinimum": 0}, {"gt": "0", "le": "10**4"}, False),
        (["a"], {"maxLength": 7, "minLength": 1}, {"max_length": "7", "min_length": "1"}, True),
        (["a"], {"type": "string"}, {"max_length": "200"}, False),
    ],
)
def test_a_bound_of_the_schema_is_no_guess(values, schema, bounds, is_known):
    found = guess(values, schema=schema)
    assert found
    assert (found.bounds, found.is_known) == (bounds, is_known)


def test_the_limit_of_a_message_is_four_times_the_largest_or_more():
    assert [wider(size) for size in (1, 20_000, 10**8)] == [65_536, 131_072, 67_108_864]
