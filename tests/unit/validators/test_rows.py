"""The fast path in SQL accepts only texts that `Topic.parse` accepts, with equal values, and all usual messages."""

from __future__ import annotations

import json
import random
import re
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from include.streams.contracts import Contract, ContractViolation, Reason, Topic
from include.streams.contracts.types import Day, UtcTime
from include.streams.validators import rows
from include.streams.validators.columns import columns_of, row_of
from tests.unit.contracts.orders import COMPLAINTS, ORDERS, ORDERS_V2, SCANS, message


class Everything(Contract):
    """A field of each kind that the fast path supports."""

    version: Literal[1]
    name: Annotated[str, Field(min_length=1, max_length=3)]
    free: Annotated[str, Field(max_length=5)] | None
    number: int
    share: Annotated[float, Field(gt=0, lt=1.5)]
    flag: bool
    at: UtcTime | None = None
    day: Day | None = None
    size: Literal["s", "m"] | None = None

    event_id_sql: ClassVar[str | None] = "name || number"

    @property
    def event_id(self) -> str:
        return f"{self.name}{self.number}"


EVERYTHING = Topic("everything", Everything, key="name", partitions=1, retention=None, max_bytes=400)
GOOD: dict[Topic, dict[str, Any]] = {
    ORDERS: json.loads(message(note="text", ship_on="2026-01-02")),
    SCANS: {
        "version": 1,
        "scanner_id": "S-000001",
        "aisle": "fruit",
        "scanned_at": "2026-01-02T03:04:05Z",
        "items_total": 5,
        "battery_percent": 50,
    },
    COMPLAINTS: {
        "version": 1,
        "complaint_id": "CO-12345678",
        "received_at": "2026-01-02T03:04:05.5+02:00",
        "kind": "trade",
        "aisle": None,
        "address": "Main St. 5",
        "order_id": None,
        "subject": "no apples",
        "text": "two\nlines, é and \u2028",
    },
    EVERYTHING: {
        "version": 1,
        "name": "abc",
        "free": "ä\n\\",
        "number": -5,
        "share": 0.1,
        "flag": True,
        "at": "2026-02-28T23:59:59.000001-07:30",
        "day": "2026-02-28",
        "size": "m",
    },
}
topics = st.sampled_from(list(GOOD))


ENGINE = duckdb.connect(config={"threads": 1})
ENGINE.execute("set timezone = 'UTC'")
ENGINE.execute(rows.MACROS)


def fast_rows(topic: Topic, texts: list[str | None]) -> list[dict[str, Any]]:
    """The rows of the fast path, in the order of the texts."""
    count = len(texts)
    landed = pa.table(
        {
            "partition": pa.array([0] * count, pa.int32()),
            "offset": pa.array(range(count), pa.int64()),
            "timestamp": pa.array([None] * count, pa.timestamp("us", "UTC")),
            "value": pa.array(texts, pa.string()),
        }
    )
    ENGINE.register("landed", landed)
    found = ENGINE.sql(rows.fast_path_sql(topic, "from landed") + " order by kafka_offset")
    return [dict(zip(found.columns, values, strict=True)) for values in found.fetchall()]


def parsed(topic: Topic, text: str | None) -> dict[str, Any] | ContractViolation:
    try:
        return rows.parse_row(topic, text)
    except ContractViolation as violation:
        return violation


def assert_same_as_parsed(topic: Topic, texts: list[str | None]) -> list[bool]:
    """Returns, for each text, whether the fast path accepted it."""
    found = fast_rows(topic, texts)
    for text, row in zip(texts, found, strict=True):
        if row[rows.NEEDS_PARSER]:
            assert row[rows.TEXT] == text
            continue
        expected = parsed(topic, text)
        assert not isinstance(expected, ContractViolation), (text, expected)
        for name, value in expected.items():
            assert (row[name], type(row[name])) == (value, type(value)), (text, name)
    return [not row[rows.NEEDS_PARSER] for row in found]


# Nearly valid values, as JSON texts. Not split at every white space, because some texts contain white space.
NEAR = re.split(
    r"[ \n]+",
    """1 1.0 1e0 1e18 -0 -0.0 0 01 5 100 101 1000 1001 123456789012345678 9223372036854775807 9223372036854775808
1e400 1e-400 NaN Infinity -Infinity true false null "1" 0.1 1.5 1.4999999999999999 0.30000000000000004 1E2
12345678901234567890123 "" "a" "abc" "abcd" "S-000001" "S-00000" "S-000001\\n" "fruit" "Fruit" "trade" "Trade" "m"
"retail" "2026-01-02T03:04:05Z" "2026-01-02T03:04:05+02:00" "2026-01-02T03:04:05-23:59" "2026-01-02T03:04:60Z"
"2026-01-02T24:00:00Z" "2026-02-30T00:00:00Z" "2026-01-02T03:04:05.123456Z" "2026-01-02T03:04:05.1234567Z"
"1969-12-31T23:59:59Z" "2199-12-31T23:59:59Z" "2200-01-01T00:00:00Z" "2026-01-02T03:04:05" "2026-01-02t03:04:05z"
"1970-01-01T00:00:00+01:00" "2199-12-31T23:59:59-01:00" "2026-01-02T03:04:05.10Z"
"2026-01-02" "2026-13-01" "1969-12-31" "2200-01-01" "20260102" "\\u0000" "\\u00e9" "\\ud83d\\ude00" "\\ud800" "\\/"
"a\\\\" "\\"" "\\t" "x\u2028" "\ufffd" [] [1] {} {"a":1} {"a":1,"a":2} \u00a01 +1 .5 1. "CO-12345678" "o-12"
"👩‍👩‍👧" "o-1" 'a'""",
)
near = (
    st.sampled_from(NEAR)
    | st.text(max_size=6).map(json.dumps)
    | st.text(max_size=6).map(lambda text: json.dumps(text, ensure_ascii=False))
)
spaces = st.sampled_from(["", "", "", " ", "\n", "\t ", "\u00a0", "\x0b"])


@st.composite
def texts(draw: st.DrawFn, good: dict[str, Any]) -> str:
    members = [(json.dumps(name), json.dumps(value)) for name, value in good.items()]
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(members) - 1))
        what = draw(st.integers(0, 5))
        if what <= 2:
            members[place] = (members[place][0], draw(near))
        elif what == 3 and len(members) > 1:
            members.pop(place)
        elif what == 4:
            name = draw(st.sampled_from([*good, "other", "Version", "version "]))
            members.insert(place, (json.dumps(name), draw(near)))
        else:
            members.insert(place, members.pop())
    between = draw(spaces)
    inside = ",".join(f"{between}{name}{draw(spaces)}:{between}{value}" for name, value in members)
    end = draw(st.sampled_from(["}", "}", "}", ",}", ", }", "} ", "}\n", "}x", "", "}}", "},"]))
    return f"{draw(spaces)}{{{inside}{end}"


@given(st.data(), topics)
@settings(max_examples=150, deadline=None)
def test_texts_of_the_fast_path_are_accepted_by_the_parser_with_equal_values(data: st.DataObject, topic: Topic):
    assert_same_as_parsed(topic, data.draw(st.lists(texts(GOOD[topic]), min_size=10, max_size=30)))


@given(st.lists(st.text(max_size=20) | st.none(), max_size=20), topics)
@settings(max_examples=30, deadline=None)
def test_any_text_is_valid_or_needs_the_parser(values: list[str | None], topic: Topic):
    assert_same_as_parsed(topic, values)


@pytest.mark.parametrize("topic", GOOD, ids=lambda topic: topic.name)
def test_every_nearly_valid_value_in_every_field(topic: Topic):
    good = GOOD[topic]
    made = []
    for name in good:
        for value in NEAR:
            members = ",".join(f'"{n}":{value if n == name else json.dumps(v)}' for n, v in good.items())
            made.append(f"{{{members}}}")
    assert_same_as_parsed(topic, made)


class Measured(Contract):
    """A number without a bound."""

    version: Literal[1]
    name: str
    share: float

    event_id_sql: ClassVar[str | None] = "name"

    @property
    def event_id(self) -> str:
        return self.name


def test_an_extra_member_beside_a_short_number_needs_the_parser():
    topic = Topic("measured", Measured, key="name", partitions=1, retention=None)
    # DuckDB writes 1e9 as 1000000000.0: by length alone, the extra member would count as these 9 more characters.
    shares = [*NEAR, "1e9", "1e14"]
    texts = [f'{{"version":1,"name":"a","share":{value},"{"x" * n}":1}}' for value in shares for n in range(1, 20)]
    assert not any(assert_same_as_parsed(topic, texts))
    right = ['{"version":1,"name":"a","share":1e9}', '{"version":1,"name":"a","share":0.5}']
    assert assert_same_as_parsed(topic, right) == [True, True]


@pytest.mark.parametrize("topic", GOOD, ids=lambda topic: topic.name)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_usual_messages_do_not_need_the_parser(topic: Topic, separators: tuple[str, str]):
    good = GOOD[topic]
    shuffled = list(good.items())
    random.Random(1).shuffle(shuffled)
    absent = {name for name, field in topic.contract.model_fields.items() if not field.is_required()}
    documents = [
        good,
        dict(shuffled),
        {name: value for name, value in good.items() if name not in absent},
        {name: None if name in absent else value for name, value in good.items()},
    ]
    made = [json.dumps(document, separators=separators) for document in documents]
    assert assert_same_as_parsed(topic, [*made, json.dumps(good, ensure_ascii=False)]) == [True] * 5


def test_a_contract_without_a_fast_path_is_parsed_message_by_message():
    assert not rows.has_fast_path(ORDERS_V2)
    text = json.dumps(
        {
            "version": 2,
            "order_id": "o",
            "placed_at": "2026-01-02T03:04:05Z",
            "positions": [{"article": "é", "quantity": 1}],
        }
    )
    (row,) = fast_rows(ORDERS_V2, [text])
    assert row[rows.NEEDS_PARSER]
    assert rows.parse_row(ORDERS_V2, text)["positions"] == '[{"article":"é","quantity":1}]'
    assert [c.name for c in columns_of(ORDERS_V2.contract) if c.kind == "json"] == ["positions"]


class Checked(Everything):
    """The same fields, with a rule about two of them."""

    @model_validator(mode="after")
    def _rule(self) -> Checked:
        if self.flag and self.number < 0:
            raise ValueError
        return self


class Stripped(Everything):
    model_config: ClassVar[Any] = {"str_strip_whitespace": True}


@pytest.mark.parametrize("contract", [Checked, Stripped])
def test_a_contract_with_a_rule_about_several_fields_has_no_fast_path(contract: type[Contract]):
    topic = Topic("checked", contract, key="name", partitions=1, retention=timedelta(days=1))
    assert not rows.has_fast_path(topic)
    assert [row[rows.NEEDS_PARSER] for row in fast_rows(topic, [json.dumps(GOOD[EVERYTHING])])] == [True]


def test_the_reason_of_a_violation_is_that_of_the_parser():
    with pytest.raises(ContractViolation) as caught:
        rows.parse_row(SCANS, json.dumps({**GOOD[SCANS], "items_total": "5"}))
    assert caught.value.reason == Reason.wrong_type
    with pytest.raises(ContractViolation) as caught:
        rows.parse_row(SCANS, None)
    assert caught.value.reason == Reason.tombstone


def test_a_number_too_large_for_the_table_is_a_violation():
    with pytest.raises(ContractViolation, match="number"):
        rows.parse_row(EVERYTHING, json.dumps({**GOOD[EVERYTHING], "number": 2**63}))


class Misspelt(Everything):
    event_id_sql: ClassVar[str | None] = "name || '-' || number"


def test_an_event_id_sql_that_differs_from_the_property_is_an_error():
    topic = Topic("misspelt", Misspelt, key="name", partitions=1, retention=timedelta(days=1))
    landed = pa.table(
        {
            "partition": pa.array([0], pa.int32()),
            "offset": pa.array([7], pa.int64()),
            "timestamp": pa.array([None], pa.timestamp("us", "UTC")),
            "value": [json.dumps(GOOD[EVERYTHING])],
        }
    )
    ENGINE.register("sample", landed)
    assert rows.verify(ENGINE, EVERYTHING, "from sample") == 1
    with pytest.raises(rows.FastPathDiffers, match=r"offset 7.*event_id_sql"):
        rows.verify(ENGINE, topic, "from sample")


def test_an_integer_default_of_a_float_field_is_a_float_in_the_row():
    class Shares(Contract):
        version: Literal[1]
        share: float = 0

        @property
        def event_id(self) -> str:
            return "one"

    row = row_of(Shares(version=1))
    assert (row["share"], type(row["share"])) == (0.0, float)
