"""The fast path of foreign contracts accepts only messages that `Topic.parse` accepts, with equal values."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from include.streams.contracts import (
    At,
    ContractUnion,
    ContractViolation,
    ForeignContract,
    FromHeader,
    NotWanted,
    Topic,
)
from include.streams.contracts.topics import HEADERS_LANDED, header_column
from include.streams.contracts.types import Day, Line, UtcTime
from include.streams.validators import rows
from include.streams.validators.columns import table_columns
from tests import webhooks
from tests.unit.validators.test_rows import NEAR, near, spaces

Headers = tuple[tuple[str, bytes | None], ...]


class Everything(ForeignContract):
    """A field of each kind that the fast path supports, from payloads and headers."""

    name: Annotated[str, At("who.name"), Field(min_length=1, max_length=3)]
    free: Annotated[str, At("who.more.free"), Field(max_length=5)] | None
    number: int
    share: Annotated[float, At("who.share"), Field(gt=0, lt=1.5)]
    flag: Annotated[bool, At(("odd", "a.b", "c d/é"))]
    at: Annotated[UtcTime, At("when.at")] | None = None
    day: Annotated[Day, At("when.day")] | None = None
    size: Annotated[Literal["s", "m"] | None, FromHeader("Size")] = None
    title: Annotated[Line, FromHeader("X-Title"), Field(max_length=8)]
    sent: Annotated[UtcTime, FromHeader("Sent")] | None = None

    event_id_sql: ClassVar[str | None] = "name || number || title"

    @property
    def event_id(self) -> str:
        return f"{self.name}{self.number}{self.title}"


class Other(ForeignContract):
    number: int
    name: Annotated[str, At("name"), Field(max_length=3)] | None = None

    event_id_sql: ClassVar[str | None] = "number::varchar"

    @property
    def event_id(self) -> str:
        return str(self.number)


def topic(contract: Any) -> Topic:
    return Topic("theirs", contract, key=None, partitions=1, retention=None, max_bytes=2_000, landed=True)


EVERYTHING = topic(Everything)
BY_HEADER = topic(ContractUnion(by=FromHeader("Type"), contracts={"all": Everything, "other": Other}))
BY_FIELD = topic(ContractUnion(by=At("meta.type"), contracts={"all": Everything, "other": Other}))
TOPICS = [EVERYTHING, BY_HEADER, BY_FIELD]
GOOD: dict[str, Any] = {
    "who": {"name": "abc", "more": {"free": "ä\n\\", "x": [1, {"free": 2}]}, "share": 0.1, "share2": []},
    "number": -5,
    "odd": {"a.b": {"c d/é": True}, "a": {"b": 1}},
    "when": {"at": "2026-02-28T23:59:59.000001-07:30", "day": "2026-02-28"},
    "meta": {"type": "all", "id": 1},
    "name": "xyz",
    "rest": {"deep": [[[{"a": None}]]], "text": "inf, nan: infinite [info]"},
}
GOOD_HEADERS: Headers = (
    ("Type", b"all"),
    ("X-Title", "é t".encode()),
    ("Size", b"m"),
    ("Sent", b"2026-01-02T03:04:05Z"),
)

ENGINE = duckdb.connect(config={"threads": 1})
ENGINE.execute("set timezone = 'UTC'")
ENGINE.execute(rows.MACROS)


def landed(of: Topic, messages: list[tuple[str | None, Headers]], marker: str | None = None) -> None:
    """Register a table as the sink lands it: the last header of each name, or null without one."""
    count = len(messages)
    columns: dict[str, Any] = {
        "partition": pa.array([0] * count, pa.int32()),
        "offset": pa.array(range(count), pa.int64()),
        "timestamp": pa.array([None] * count, pa.timestamp("us", "UTC")),
        "value": pa.array([value for value, _ in messages], pa.string()),
        HEADERS_LANDED: pa.array([marker or ",".join(of.headers)] * count, pa.string()),
    }
    for name in of.headers:
        columns[header_column(name)] = pa.array([dict(headers).get(name) for _, headers in messages], pa.binary())
    ENGINE.register("landed", pa.table(columns))


def fast_rows(of: Topic) -> list[dict[str, Any]]:
    found = ENGINE.sql(f"select * from ({rows.fast_path_sql(of, 'from landed')}) order by kafka_offset")
    return [dict(zip(found.columns, values, strict=True)) for values in found.fetchall()]


def parsed(of: Topic, value: str | None, headers: Headers) -> dict[str, Any] | ContractViolation | None:
    try:
        return rows.parse_row(of, value, headers)
    except ContractViolation as violation:
        return violation
    except NotWanted:
        return None


def assert_same_as_parsed(of: Topic, messages: list[tuple[str | None, Headers]]) -> list[bool]:
    """Returns, for each message, whether the fast path decided it."""
    landed(of, messages)
    found = fast_rows(of)
    assert len(found) == len(messages)
    for (value, headers), row in zip(messages, found, strict=True):
        if row[rows.NEEDS_PARSER]:
            assert row[rows.TEXT] == value
            assert rows.headers_of(of, row[rows.HEADERS]) == [
                (name, text) for name in of.headers if (text := dict(headers).get(name)) is not None
            ]
            assert not row[rows.NOT_WANTED]
            continue
        expected = parsed(of, value, headers)
        assert not isinstance(expected, ContractViolation), (value, headers, expected)
        assert row[rows.NOT_WANTED] == (expected is None), (value, headers)
        for name, content in (expected or {}).items():
            assert (row[name], type(row[name])) == (content, type(content)), (value, name)
    return [not row[rows.NEEDS_PARSER] for row in found]


names = st.sampled_from([*GOOD, *GOOD["who"], "type", "free", "Who", "who ", "share\u0000", "odd", "a.b", "*", "$", ""])
anything = st.recursive(
    near | st.sampled_from(["NaN", "-Infinity", "inf", "nAn", "1e999", "9" * 4_500, "[" * 150 + "]" * 150, "[1,]"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{','.join(parts)}]")
        | st.lists(st.tuples(names, inner), max_size=4).map(
            lambda parts: "{" + ",".join(f"{json.dumps(name)}:{part}" for name, part in parts) + "}"
        )
    ),
    max_leaves=6,
)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A good payload with some members replaced, removed, added, repeated, or written differently."""
    left = draw(st.integers(0, 2))

    def write(node: Any) -> str:
        nonlocal left
        if not isinstance(node, dict):
            return json.dumps(node, ensure_ascii=draw(st.booleans()))
        members = [(name, node[name], None) for name in node]
        while left and draw(st.integers(0, 2)) == 0:
            left -= 1
            place = draw(st.integers(0, len(members) - 1))
            what = draw(st.integers(0, 3))
            if what == 0:
                members[place] = (members[place][0], None, draw(anything))
            elif what == 1 and len(members) > 1:
                members.pop(place)
            elif what == 2:
                members.insert(place, (draw(names | st.sampled_from(list(node))), None, draw(anything)))
            else:
                members.insert(place, members.pop())
        between = draw(spaces)
        parts = []
        for name, content, text in members:
            quoted = json.dumps(name, ensure_ascii=draw(st.booleans()))
            if name and draw(st.integers(0, 20)) == 0:
                quoted = '"' + "".join(f"\\u{ord(character):04x}" for character in name) + '"'
            parts.append(f"{between}{quoted}{between}:{text if text is not None else write(content)}")
        return f"{{{','.join(parts)}{draw(st.sampled_from(['', '', '', '', ',', ' ']))}}}"

    return write(GOOD) + draw(st.sampled_from(["", "", "", "", " ", "\n", "x", "}", ","]))


values_of_headers = st.sampled_from([value for _, value in GOOD_HEADERS]) | st.sampled_from(
    [None, b"", b"\xff", b"other", b"none", "ä".encode(), b"a\x00b", b'"', b"\\", b"2026-13-01T00:00:00Z", b"x" * 9]
)


@st.composite
def headers(draw: st.DrawFn) -> Headers:
    found = dict(GOOD_HEADERS)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(list(dict(GOOD_HEADERS))))
        if draw(st.booleans()):
            found[name] = draw(values_of_headers)
        else:
            found.pop(name, None)
    return tuple(found.items())


@pytest.mark.parametrize("of", TOPICS, ids=["one", "by header", "by field"])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_texts_of_the_fast_path_are_accepted_by_the_parser_with_equal_values(of: Topic, data: st.DataObject):
    assert_same_as_parsed(of, data.draw(st.lists(st.tuples(texts(), headers()), min_size=5, max_size=20)))


@pytest.mark.parametrize("of", TOPICS, ids=["one", "by header", "by field"])
@given(messages=st.lists(st.tuples(st.text(max_size=20) | st.none() | anything, headers()), max_size=20))
@settings(max_examples=20, deadline=None)
def test_any_message_is_valid_or_needs_the_parser(of: Topic, messages: list[tuple[str | None, Headers]]):
    assert_same_as_parsed(of, messages)


def test_members_that_are_not_picked_may_be_deep_and_long():
    of = Topic("theirs", Other, key=None, partitions=1, retention=None)
    deep = '{"a":' * 290 + "[" * 290 + "]" * 290 + "}" * 290
    deeper = '{"a":' * 600 + "[" * 600 + "]" * 600 + "}" * 600
    texts = [f'{{"rest":{rest},"number":1}}' for rest in (deep, "9" * 5_000, "1e999", deeper)]
    assert assert_same_as_parsed(of, [(text, ()) for text in texts]) == [True, True, True, False]


def with_text(path: tuple[str, ...], text: str, node: Any = GOOD) -> str:
    """The good payload with a JSON text at a path."""
    if not path:
        return text
    members = {name: json.dumps(content) for name, content in node.items()}
    inner = node.get(path[0], {})
    members[path[0]] = with_text(path[1:], text, inner if isinstance(inner, dict) else {})
    return "{" + ",".join(f"{json.dumps(name)}:{member}" for name, member in members.items()) + "}"


PATHS = [
    ("who", "name"), ("who", "more", "free"), ("number",), ("who", "share"), ("odd", "a.b", "c d/é"), ("when", "at"),
    ("when", "day"), ("who",), ("who", "more"), ("odd", "a.b"), ("when",), ("meta",), ("meta", "type"), ("rest", "new"),
]  # fmt: skip


@pytest.mark.parametrize("of", TOPICS, ids=["one", "by header", "by field"])
def test_every_nearly_valid_value_at_every_path(of: Topic):
    odd = [*NEAR, "NaN", "-inf", "1e999", "9" * 1_500, "[" * 500 + "]" * 500, "[1,]", '{"a":1,}']
    texts = [with_text(path, text) for path in PATHS for text in odd]
    assert_same_as_parsed(of, [(text, GOOD_HEADERS) for text in texts])


@pytest.mark.parametrize("of", TOPICS, ids=["one", "by header", "by field"])
def test_usual_messages_do_not_need_the_parser(of: Topic):
    without = {**GOOD, "when": None, "who": {**GOOD["who"], "more": {"free": None}}}
    usual = [json.dumps(GOOD), json.dumps(GOOD, separators=(",", ":"), ensure_ascii=False), json.dumps(without)]
    short = tuple(header for header in GOOD_HEADERS if header[0] in ("Type", "X-Title"))
    assert assert_same_as_parsed(of, [(text, held) for text in usual for held in (GOOD_HEADERS, short)]) == [True] * 6


@pytest.mark.parametrize(
    ("of", "unwanted"),
    [
        (BY_HEADER, (None, (("Type", b"third"),))),
        (BY_HEADER, ("no json", (("Type", b"third"),))),
        (BY_FIELD, ('{"meta":{"type":"third"},"meta2":[]}', ())),
    ],
)
def test_the_fast_path_decides_about_messages_that_no_contract_takes(of: Topic, unwanted: tuple[str | None, Headers]):
    assert assert_same_as_parsed(of, [unwanted, (json.dumps(GOOD), GOOD_HEADERS)]) == [True, True]


@pytest.mark.parametrize("text", ['{"meta":{"type":"third","type":"all"}}', '{"meta":{"type":3}}', '{"meta":[]}', "{"])
def test_a_message_with_an_unreadable_type_needs_the_parser(text: str):
    assert assert_same_as_parsed(BY_FIELD, [(text, GOOD_HEADERS)]) == [False]


def test_rows_from_before_a_header_was_picked_need_the_parser():
    for marker, decided in (("X-Title", False), (",".join(reversed(EVERYTHING.headers)), True)):
        landed(EVERYTHING, [(json.dumps(GOOD), GOOD_HEADERS)], marker)
        (row,) = fast_rows(EVERYTHING)
        assert row[rows.NEEDS_PARSER] is not decided
        assert row[rows.HEADERS] is None


def test_the_fast_path_decides_webhooks_of_contracts_without_a_list():
    of = webhooks.topic(landed=True)
    some = list(webhooks.webhooks(200))
    messages = [(one.value.decode(), tuple(one.headers)) for one in some]
    decided = assert_same_as_parsed(of, messages)
    assert decided == [one.kind != "pull_request" for one in some]
    assert rows.has_fast_path(of)
    landed(of, messages)
    assert rows.verify(ENGINE, of, "from landed") == sum(decided)


def test_a_union_has_a_column_for_each_field_of_its_contracts():
    found = {column.name: (column.kind, column.required) for column in table_columns(webhooks.topic())}
    assert found["contract"] == ("string", True)
    assert found["number"] == ("long", False)
    assert found["labels"] == ("json", False)
    assert {"ref", "pushed_at", "opened_at", "base"} <= found.keys()


class Clash(Other):
    name: Annotated[int, At("name")] | None = None


def test_fields_with_one_name_and_two_types_are_refused():
    of = topic(ContractUnion(by=At("type"), contracts={"a": Other, "b": Clash}))
    with pytest.raises(ValueError, match="field name is of type string in Other and of type long in Clash"):
        table_columns(of)


class Misspelt(Other):
    event_id_sql: ClassVar[str | None] = "number || '!'"


def test_an_event_id_sql_that_differs_from_the_property_is_an_error():
    of = topic(Misspelt)
    landed(of, [(json.dumps(GOOD), ())])
    with pytest.raises(rows.FastPathDiffers, match=r"offset 0.*event_id_sql"):
        rows.verify(ENGINE, of, "from landed")


class Overlapping(Other):
    all_of_it: Annotated[Line, At("who"), Field(max_length=9)] | None = None
    part: Annotated[Line, At("who.name"), Field(max_length=9)] | None = None


class OnlyHeaders(ForeignContract):
    title: Annotated[Line, FromHeader("X-Title"), Field(max_length=8)]
    event_id_sql: ClassVar[str | None] = "title"

    @property
    def event_id(self) -> str:
        return self.title


@pytest.mark.parametrize("contract", [Overlapping, OnlyHeaders])
def test_messages_of_contracts_without_a_fast_path_need_the_parser(contract: type[ForeignContract]):
    of = topic(contract)
    assert not rows.has_fast_path(of)
    assert assert_same_as_parsed(of, [(json.dumps(GOOD), GOOD_HEADERS)]) == [False]
