"""DuckDB finds at least the rows that break a rule by the judgement of Great Expectations."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from include.streams.validators import evaluation, screening
from include.streams.validators.rules import Rule, SetSuite, at_most_long, between, matches, not_null, one_of, unique

TEXTS = [
    None,
    "",
    " ",
    "a",
    "A",
    "b",
    "abc",
    "abcd",
    "a\n",
    "\na",
    "a\r",
    "é",
    "e\u0301",
    "ß",
    "SS",
    "\u0130",
    "\u0131",
    "\u0663",
    "3",
    "3.0",
    "-1",
    "\x07",
    "\x7f",
    "\u2028",
    "\U0001f926\U0001f3fc",
    "日本",
    "a" * 300,
    "'",
    '"',
    "\\",
    "]",
    "^",
    "NaN",
    "nan",
    "None",
    "a-c",
    "a.c",
    "aXc",
]
INTEGERS = [None, 0, 1, -1, 5, 10, 11, 2**31, -(2**31), 2**50 + 1, 2**63 - 1, -(2**63)]
NUMBERS = [
    None,
    0.0,
    -0.0,
    0.1,
    1.0,
    10.0,
    10.000000000000002,
    float("nan"),
    float("inf"),
    float("-inf"),
    1e308,
    5e-324,
]
PATTERNS = [
    "^[a-c]$",
    "^a",
    "c$",
    "a.c",
    r"a\.c",
    "^[^a]*$",
    "^(a|b)c*$",
    "^[a-z]{3}$",
    "^[a-z]{2,}$",
    "^.$",
    r"^\d$",
    r"^\w+$",
    r"^\S+$",
    r"^[^\u0000-\u0008\u007f]*$",
    r"^[^\\]*$",
    r"[\]^]",
    "(?i)^A$",
    "^a{1,2}(b{1,600}){1,2}$",
    "^[ß-é]$",
    "日",
    "^$",
    "",
    r"\bab",
    "a{1001}",
    r"^[\[\-]$",
]
# Not beyond 2**53: a column with a missing value becomes a column of doubles in pandas, which cannot tell such integers
# apart. DuckDB can.
BOUNDS: list[tuple[Any, Any]] = [(0, 10), (0, None), (None, 10), (0.05, 10.0), (-(2**63), 2**63 - 1), (2**40, 2**60)]
CASES = [
    *((rule, TEXTS) for rule in (not_null("x"), unique("x"), at_most_long("x", 1), at_most_long("x", 3))),
    *((matches("x", pattern), TEXTS) for pattern in PATTERNS),
    (one_of("x", ["a", "'", "é", ""]), TEXTS),
    *((rule, INTEGERS) for rule in (not_null("x"), unique("x"), one_of("x", [0, 1]))),
    *((rule, NUMBERS) for rule in (not_null("x"), unique("x"))),
    *(
        (between("x", low, high, strict=strict), values)
        for low, high in BOUNDS
        for strict in (True, False)
        for values in ([value for value in INTEGERS if value is not None], NUMBERS)
    ),
    (Rule("ExpectColumnValuesToBeNull", "x", "never there"), TEXTS),
    (Rule("ExpectColumnValueLengthsToBeBetween", "x", "lengths", {"min_value": 1, "max_value": 3}), TEXTS),
]


def observed(rules: list[Rule], values: list[Any]) -> list[tuple[str, str]]:
    # Twice, because each value once keeps the rule that each value occurs once.
    table = pa.table({"x": values + values[:5]})
    suites = [SetSuite("test", ("x",), (rule,)) for rule in rules]
    outcomes = [evaluation.evaluate(suite, table).outcomes[0] for suite in suites]
    return [(outcome.state.value, outcome.observed) for outcome in outcomes]


@pytest.mark.parametrize("values", [TEXTS, INTEGERS, NUMBERS], ids=["texts", "integers", "numbers"])
def test_a_screened_rule_has_the_outcome_of_great_expectations(values: list[Any], monkeypatch):
    kinds = {type(value) for value in values if value is not None}
    rules = [rule for rule, given in CASES if {type(value) for value in given if value is not None} == kinds]
    assert len(rules) > 5
    screened = observed(rules, values)
    monkeypatch.setattr(screening, "may_break", lambda *_: None)
    monkeypatch.setattr(screening, "can_count_repeated", lambda *_: False)
    assert list(zip(rules, screened, strict=True)) == list(zip(rules, observed(rules, values), strict=True))


@pytest.mark.parametrize(
    "rule", [not_null("x"), at_most_long("x", 5), one_of("x", ["a"]), matches("x", r"^[^\u0000-\u0008\u007f]*$")]
)
def test_the_rules_of_contracts_about_texts_are_screened(rule: Rule):
    assert screening.may_break(rule, "VARCHAR")


@pytest.mark.parametrize("pattern", [r"^\d$", "(?i)a", "a.c", "a$|b", "a{1001}", "(a{40}){40}", "a**"])
def test_a_pattern_that_engines_may_read_differently_is_not_screened(pattern: str):
    rule = Rule("ExpectColumnValuesToMatchRegex", "x", pattern, {"regex": pattern})
    assert screening.may_break(rule, "VARCHAR") is None
