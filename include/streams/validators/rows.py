"""Validate raw texts in sets, and convert them to rows of a contract.

`Topic.parse` (the parser) defines which messages are valid. The fast path is an SQL query that is generated from the
contract. It accepts a text only when it can prove that the parser would accept the text with equal values. All other
texts go through the parser, one by one, which also gives the reason when a text is invalid. So the result is always
that of the parser, and valid messages are fast.

A contract has no fast path if something about it cannot be proved: an unknown pydantic schema, a pattern that the
engines might read differently, or a missing `event_id_sql`. Then all of its messages go through the parser.

For a foreign contract, the fast path extracts all picked paths at once. It proves that these paths have only one
reading, and nothing about the other members.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from include.streams.contracts import (
    At,
    Contract,
    ContractUnion,
    ContractViolation,
    ForeignContract,
    FromHeader,
    NotWanted,
    Topic,
)
from include.streams.contracts import types as contract_types
from include.streams.contracts.foreign import Headers, sources_of
from include.streams.contracts.topics import HEADERS_LANDED, header_column
from include.streams.lake.engine import literal, quoted
from include.streams.lake.types import sql_type
from include.streams.validators.columns import CONTRACT, Fields, columns_of, fields_of, row_of, table_columns

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Functions that SQL expressions for event ids may use in addition to the fields.
MACROS = """
create or replace macro utc_text(moment) as
    case when epoch_us(moment) % 1000000 = 0 then strftime(make_timestamp(epoch_us(moment)), '%Y-%m-%dT%H:%M:%SZ')
         else strftime(make_timestamp(epoch_us(moment)), '%Y-%m-%dT%H:%M:%S.%fZ') end
"""
_TIME = (
    "[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?"
    "(Z|[+-](0[0-9]|1[0-4]):[0-5][0-9])"
)
_DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
# The number of digits is limited so that a double is not rounded twice, and the exponent so that it does not overflow.
_NUMBER = "-?[0-9]{1,15}(\\.[0-9]{1,20})?(e[+-]?[0-9]{1,2})?"
# Patterns with the same meaning in Rust's engine and in RE2: no named classes, no flags, no Unicode escapes except
# \uXXXX, and no dot outside of brackets.
_PLAIN_PATTERN = re.compile(
    r"(\[\^?(\\u[0-9a-f]{4}|[A-Za-z0-9._:/@#+ -])+\]|\\[.+/-]|[A-Za-z0-9_:/@# -]|[*+?^$()|]|\{[0-9,]+\})*"
)
# Patterns of the whole text that match only plain ASCII without quotes and backslashes. The JSON text is then the value
# between quotes, and can be matched without decoding.
_ASCII_PATTERN = re.compile(r"\^((\[[A-Za-z0-9._:/@+ -]+\]|[A-Za-z0-9_:/@ -])([*+?]|\{[0-9,]+\})?)*\$")
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9_.: -]+")
# Columns of the fast path besides the contract's. Their names have a space, which no field of a contract has. Staging
# files of runs that are in progress during a deploy have these names too, so they must not change.
NEEDS_PARSER, NOT_WANTED, TEXT, HEADERS = "to examine", "not wanted", "landed text", "landed headers"
REPLACEMENT = "\ufffd"
# A producer can write any number into the timestamp in milliseconds: microseconds there mean the year 55000, which no
# reader of a table in Python accepts.
RECORD_TIME = 'case when "timestamp" >= \'0001-01-02\' and "timestamp" < \'9999-12-31\' then "timestamp" end'
_META = {"type", "metadata", "ref", "serialization", "strict"}


class NoFastPath(Exception):
    """The contract has no fast path: SQL cannot prove that its messages are valid. The text says why."""


class FastPathDiffers(Exception):
    """The fast path has accepted a message that the parser rejects or reads differently.

    The fault is in the fast path or in `event_id_sql`.
    """


@dataclass(frozen=True)
class FieldSql:
    """A field in SQL.

    Attributes:
        value: The expression of the field's value.
        check: A condition that holds only if the parser accepts the field with that value.
        may_grow: Whether DuckDB may write the value with more characters than it has in the message, such as
            1000000000.0 for 1e9.
    """

    value: str
    check: str
    may_grow: bool = False


def fast_path_sql(topic: Topic, source: str) -> str:
    """The query of the fast path, with one row for each message.

    Args:
        topic: The topic of the messages.
        source: An SQL query with the columns partition, offset, timestamp and value; for a topic that needs headers,
            also with their columns (`header_column`) and HEADERS_LANDED.

    Returns:
        An SQL query with the topic's columns (`table_columns`), event_id, kafka_partition, kafka_offset,
        kafka_timestamp, NEEDS_PARSER, NOT_WANTED, TEXT and HEADERS. NEEDS_PARSER is true if the message must go through
        the parser. TEXT then holds its text, and HEADERS the bytes of the topic's headers in their order, or null if
        not all of them have landed. NOT_WANTED is true if no contract of the topic's union takes the message. If either
        is true, the topic's columns must not be used.
    """
    union = topic.contract if isinstance(topic.contract, ContractUnion) else None
    if union is None:
        return _contract_sql(topic, topic.contracts[0], source)
    by = union.by
    if isinstance(by, FromHeader):
        kind, names = f"case when {_landed(topic)} then {_header(by)} end", {n: literal(n) for n in union.contracts}
        objects, is_kind = "null", f"{_KIND} is not null"
    else:
        extracted = f"try(json_extract(value, {literal(_json_path(by.names))})::varchar)"
        kind = f"case when {_is_strict(topic)} then {extracted} end"
        names = {n: literal(f'"{n}"') for n in union.contracts}
        paths, unambiguous = _unambiguous([by.names], "value", _OBJECTS)
        objects, is_kind = f"try(json_keys(value, {paths}))", f"""starts_with({_KIND}, '"') and {unambiguous}"""
    typed = f"select *, {kind} as {_KIND} from ({source})"
    parts = [
        _contract_sql(topic, contract, f"select * from ({typed}) where {_KIND} = {names[name]}")
        for name, contract in union.contracts.items()
    ]
    nulls = ", ".join(f"null::{sql_type(c.iceberg_type)} as {quoted(c.name)}" for c in table_columns(topic))
    others = f"""
        select *, not coalesce({is_kind}, false) as {quoted(NEEDS_PARSER)} from (
            select *, {objects} as {_OBJECTS} from ({typed})
            where coalesce({_KIND} not in ({", ".join(names.values())}), true)
        )
    """
    parts.append(
        f"select {nulls}, null::varchar as event_id, {_POSITION}, {quoted(NEEDS_PARSER)}, "
        f"not {quoted(NEEDS_PARSER)} as {quoted(NOT_WANTED)}, {_for_parse(topic, 'value')} from ({others})"
    )
    return " union all ".join(f"select * from ({part})" for part in parts)


_POSITION = f'"partition" as kafka_partition, "offset" as kafka_offset, {RECORD_TIME} as kafka_timestamp'
# Columns that only the query itself uses: the type by which a union chooses a contract; the names in each object on
# picked paths.
_KIND, _OBJECTS = quoted("type of the message"), quoted("names in objects")


def _contract_sql(topic: Topic, contract: type[Contract], source: str) -> str:
    """The query for messages of one contract; every message needs the parser if the contract has no fast path."""
    columns = table_columns(topic)
    own = {column.name for column in columns_of(contract)}
    try:
        fields = _fields(contract)
        event_id = contract.event_id_sql
        if event_id is None:
            raise NoFastPath("no event_id_sql")
        read = _read_foreign(topic, contract) if issubclass(contract, ForeignContract) else _read_own(topic, contract)
    except NoFastPath:
        nulls = ", ".join(f"null::{sql_type(c.iceberg_type)} as {quoted(c.name)}" for c in columns)
        return (
            f"select {nulls}, null::varchar as event_id, {_POSITION}, true as {quoted(NEEDS_PARSER)}, "
            f"false as {quoted(NOT_WANTED)}, {_for_parse(topic, 'value')} "
            f"from (select *, true as {quoted(NEEDS_PARSER)} from ({source}))"
        )
    raw = ", ".join(f"{expression}::varchar as {_raw(name)}" for name, expression in read.texts.items())
    parsed = ", ".join(f'case when "is readable" then try({e}) end as {name}' for name, e in read.parsed.items())
    values = ", ".join(f"{field.value} as {quoted(name)}" for name, field in fields.items())
    checks = " and ".join(f"({field.check})" for field in fields.values())
    names = ", ".join(
        quoted(c.name)
        if c.name in own
        else f"{literal(contract.contract_name)} as {CONTRACT}"
        if c.name == CONTRACT
        else f"null::{sql_type(c.iceberg_type)} as {quoted(c.name)}"
        for c in columns
    )
    headers = "".join(f", {name}" for name in _header_columns(topic))
    kept = f'kafka_partition, kafka_offset, kafka_timestamp, "json text"{headers}'
    return f"""
        with landed_texts as (
            select {_POSITION}, value as "json text"{headers}, {read.is_readable} as "is readable" from ({source})
        ),
        parsed as (
            select {kept}, {parsed} from landed_texts
        ),
        texts as (select {kept}, {read.is_json} as "is json", {raw} from parsed),
        typed as (select *, {values} from texts),
        checked as (
            select *, not coalesce("is json" and {checks} and {read.names}, false) as {quoted(NEEDS_PARSER)} from typed
        )
        select {names}, case when not {quoted(NEEDS_PARSER)} then {event_id} end as event_id,
            kafka_partition, kafka_offset, kafka_timestamp, {quoted(NEEDS_PARSER)}, false as {quoted(NOT_WANTED)},
            {_for_parse(topic, '"json text"')}
        from checked
    """


def _for_parse(topic: Topic, text: str) -> str:
    """The columns TEXT and HEADERS, null if the message does not need the parser."""
    needs_parser = quoted(NEEDS_PARSER)
    headers = "[]::blob[]"
    if topic.headers:
        listed = ", ".join(quoted(header_column(name)) for name in topic.headers)
        headers = f"case when {needs_parser} and {_landed(topic)} then [{listed}] end"
    return f"case when {needs_parser} then {text} end as {quoted(TEXT)}, {headers} as {quoted(HEADERS)}"


@dataclass(frozen=True)
class _Reading:
    """How the fields of a contract are read from a message, in SQL.

    Attributes:
        is_readable: A condition on the text: if DuckDB parses it as JSON, the parser does too.
        parsed: {column: expression of the parsed text}.
        is_json: A condition on these columns: the text is a JSON object (and its picked part is unambiguous).
        texts: {field: expression of its JSON text, from these columns}.
        names: A condition, on the fields' texts, for the names in the object.
    """

    is_readable: str
    parsed: dict[str, str]
    is_json: str
    texts: dict[str, str]
    names: str


def _read_own(topic: Topic, contract: type[Contract]) -> _Reading:
    fields = _fields(contract)
    shape = json.dumps({name: "JSON" for name in fields})
    # Excludes texts with a trailing comma, which DuckDB's parser accepts, and with U+FFFD, which may replace bytes that
    # were not UTF-8: only the original record shows this.
    readable = (
        f"value is not null and strlen(value) <= {topic.max_bytes} "
        f"and not contains(value, '{REPLACEMENT}') "
        r"and not regexp_matches(value, ',[ \t\r\n]*\}[ \t\r\n]*$')"
    )
    return _Reading(
        readable,
        {"json": f'json_transform("json text", {literal(shape)})'},
        "json is not null",
        {name: f"json.{quoted(name)}" for name in fields},
        _keys(contract),
    )


# Numbers that DuckDB's JSON parser accepts, and no other JSON parser. Each pattern begins with one plain character,
# which the regular expression engine finds at once: as one pattern, they would take five times as long.
_NO_NUMBER = r"-?([nN][aA][nN]|[iI][nN][fF]([iI][nN][iI][tT][yY])?)[ \t\r\n]*[,}\]]"
_NOT_STRICT = (
    rf",[ \t\r\n]*([}}\]]|{_NO_NUMBER})",  # a trailing comma too
    rf":[ \t\r\n]*{_NO_NUMBER}",
    rf"\[[ \t\r\n]*{_NO_NUMBER}",
)
# The most brackets of each kind. Python's JSON parser allows more levels than both limits together, even with a deep
# call stack.
_MAX_BRACKETS = 300


def _is_strict(topic: Topic) -> str:
    """A condition on `value`: if DuckDB parses it, every JSON parser does.

    Only the picked fields are checked further, so the whole text must not contain anything that only DuckDB accepts.
    """
    brackets = (f"value like '%{'%'.join(bracket * _MAX_BRACKETS)}%'" for bracket in "{[")
    return (
        f"value is not null and strlen(value) <= {topic.max_bytes} and not contains(value, '{REPLACEMENT}') "
        + "".join(f"and not regexp_matches(value, {literal(pattern)}) " for pattern in _NOT_STRICT)
        + f"and (strlen(value) < {2 * _MAX_BRACKETS} or not ({' or '.join(brackets)}))"
    )


def _read_foreign(topic: Topic, contract: type[ForeignContract]) -> _Reading:
    sources = sources_of(contract)
    paths = [source.names for source in sources.values() if isinstance(source, At)]
    if not paths:
        raise NoFastPath("nothing is picked from the payload")
    if isinstance(topic.contract, ContractUnion) and isinstance(topic.contract.by, At):
        read = [*paths, topic.contract.by.names]
    else:
        read = paths
    objects, unambiguous = _unambiguous(read, '"json text"', _OBJECTS)
    texts, conditions = {}, [f"json is not null and len({_OBJECTS}[1]) > 0", unambiguous]
    nodes = _objects(read)
    schemas = fields_of(contract).schemas
    if any(isinstance(source, FromHeader) for source in sources.values()):
        conditions.append(_landed(topic))
    for name, source in sources.items():
        # A field's text is the same whether the field is null or missing, and a field without a default may only be
        # null.
        is_required = schemas[name]["type"] != "default"
        if isinstance(source, At):
            *way, last = source.names
            texts[name] = ".".join(["json", *map(quoted, source.names)])
            if is_required:
                number = list(nodes).index(tuple(way)) + 1
                conditions.append(f"list_contains({_OBJECTS}[{number}], {literal(last)})")
        else:
            texts[name] = f"to_json({_header(source)})"
            if is_required:
                conditions.append(f"{quoted(header_column(source.name))} is not null")
            # A header that is not UTF-8 needs the parser.
            conditions.append(f"({quoted(header_column(source.name))} is null or {_header(source)} is not null)")
    return _Reading(
        _is_strict(topic),
        {
            "json": f'json_transform("json text", {literal(json.dumps(_shape(paths)))})',
            _OBJECTS: f'json_keys("json text", {objects})',
        },
        " and ".join(conditions),
        texts,
        "true",
    )


def _shape(paths: Iterable[tuple[str, ...]]) -> dict[str, Any]:
    """The structure for `json_transform` that holds the JSON texts at these paths."""
    shape: dict[str, Any] = {}
    for path in paths:
        node = shape
        for name in path[:-1]:
            node = node.setdefault(name, {})
            if node == "JSON":
                raise NoFastPath("a picked path inside another picked field")
        if isinstance(node.setdefault(path[-1], "JSON"), dict):
            raise NoFastPath("a picked path inside another picked field")
    _check_names(shape)
    return shape


def _check_names(shape: dict[str, Any]) -> None:
    # DuckDB's structs have no two members that differ only in upper and lower case.
    if len({name.lower() for name in shape}) < len(shape):
        raise NoFastPath("names that differ only in case")
    for node in shape.values():
        if isinstance(node, dict):
            _check_names(node)


def _unambiguous(paths: Iterable[tuple[str, ...]], text: str, keys: str) -> tuple[str, str]:
    """The proof that the values at these paths have only one reading.

    Args:
        paths: The paths.
        text: The expression of the JSON text.
        keys: The column with the names in each object on the paths: `json_keys(text, objects)`.

    Returns:
        (objects, a condition: each value on a path is an object or null, and no name of a path occurs twice in it).
    """
    names = _objects(paths)
    conditions = []
    for number, (path, read) in enumerate(names.items(), start=1):
        present_names = f"{keys}[{number}]"
        listed = ", ".join(map(literal, read))
        present = " + ".join(f"list_contains({present_names}, {literal(name)})::int" for name in read)
        once = f"len(list_filter({present_names}, lambda name: name in ({listed}))) = {present}"
        if path:
            # An empty list of names means an empty object or null, but also a list, a text or a number.
            # `try`, because the expression is also evaluated for texts that are not JSON.
            kind = f"try(json_type({text}, {literal(_json_path(path))})) in ('NULL', 'OBJECT')"
            once = f"({present_names} is null or case when len({present_names}) > 0 then {once} else {kind} end)"
        conditions.append(once)
    objects = ", ".join(literal(_json_path(path)) for path in names)
    return f"[{objects}]", " and ".join(conditions)


def _objects(paths: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], dict[str, None]]:
    """{path of an object on these paths: the names that are read in it}."""
    objects: dict[tuple[str, ...], dict[str, None]] = {}
    for path in paths:
        for depth, name in enumerate(path):
            objects.setdefault(path[:depth], {})[name] = None
    return objects


def _json_path(names: Iterable[str]) -> str:
    return "$" + "".join(f'."{name}"' for name in names)


def _header(source: FromHeader) -> str:
    """The text of a header; null without the header, and if it is not UTF-8."""
    return f"try(decode({quoted(header_column(source.name))}))"


def _header_columns(topic: Topic) -> list[str]:
    return [*(quoted(header_column(name)) for name in topic.headers), HEADERS_LANDED] if topic.headers else []


def _landed(topic: Topic) -> str:
    """Whether the sink has landed all headers that the contract needs; earlier contracts may have needed fewer."""
    usual = literal(",".join(topic.headers))
    return (
        f"coalesce({HEADERS_LANDED} = {usual} "
        f"or list_has_all(string_split({HEADERS_LANDED}, ','), {_list(topic.headers)}), false)"
    )


def headers_of(topic: Topic, landed: Sequence[bytes | None]) -> Headers:
    """The headers in a row's HEADERS, as the parser takes them.

    Args:
        topic: The topic of the row.
        landed: The bytes of the topic's headers in their order; None for a header that the message lacks.
    """
    return [(name, value) for name, value in zip(topic.headers, landed, strict=True) if value is not None]


def parse_row(topic: Topic, text: str | bytes | None, headers: Headers = ()) -> dict[str, Any]:
    """Parse one message, and convert it to a row.

    Args:
        topic: The topic of the message.
        text: The message's value as text or bytes; None for a tombstone.
        headers: The message's headers.

    Returns:
        {column: value}, with the event id.

    Raises:
        ContractViolation: The message breaks its contract, or a column cannot hold a value.
        NotWanted: No contract of the topic's union takes the message.
    """
    value = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    event = topic.parse(value, headers)
    row = row_of(event)
    return {**row, CONTRACT: event.contract_name} if isinstance(topic.contract, ContractUnion) else row


def verify(connection: DuckDBPyConnection, topic: Topic, sample: str) -> int:
    """Run the fast path on a sample, and compare each row that it has decided with the result of the parser.

    The comparison is needed because `event_id_sql` is a second, manual definition of the property `event_id`, and
    because a new version of DuckDB may behave differently.

    Args:
        connection: A DuckDB connection with MACROS.
        topic: The topic of the messages.
        sample: An SQL query with the columns that `fast_path_sql` needs.

    Returns:
        The number of compared rows.

    Raises:
        FastPathDiffers: A row differs. No row of the run may be written.
    """
    headers = ", ".join(f"sample.{quoted(header_column(name))}" for name in topic.headers)
    query = f"""
        select fast.*, sample.value as "json text", [{headers}] as "all headers"
        from ({fast_path_sql(topic, sample)}) fast
        join ({sample}) sample
            on sample."partition" = fast.kafka_partition and sample."offset" = fast.kafka_offset
        where not {quoted(NEEDS_PARSER)}
    """
    decided = connection.sql(query)
    names = decided.columns
    compared = 0
    for values in decided.fetchall():
        row = dict(zip(names, values, strict=True))
        where = f"topic {topic.name}: partition {row['kafka_partition']} offset {row['kafka_offset']}"
        try:
            expected = parse_row(topic, row["json text"], headers_of(topic, row["all headers"]))
        except ContractViolation as violation:
            raise FastPathDiffers(f"{where}: the fast path accepts it, the parser does not ({violation})") from None
        except NotWanted:
            expected = None
        if (expected is None) != row[NOT_WANTED]:
            raise FastPathDiffers(f"{where}: the fast path and the parser differ about whether it is wanted")
        for name, value in (expected or {}).items():
            if row[name] != value or type(row[name]) is not type(value):
                hint = "; compare event_id_sql with event_id" if name == "event_id" else ""
                raise FastPathDiffers(f"{where}: the fast path and the parser read {name} differently{hint}")
        compared += 1
    return compared


def has_fast_path(topic: Topic) -> bool:
    """Whether the topic's contract has a fast path, or is a union, whose contracts may have one."""
    return isinstance(topic.contract, ContractUnion) or _has_fast_path(topic, topic.contract)


def _has_fast_path(topic: Topic, contract: type[Contract]) -> bool:
    try:
        read = _read_foreign(topic, contract) if issubclass(contract, ForeignContract) else _read_own(topic, contract)
        return contract.event_id_sql is not None and bool(read)
    except NoFastPath:
        return False


@cache
def _fields(contract: type[Contract]) -> dict[str, FieldSql]:
    """{name: field in SQL} of the contract's fields; raises NoFastPath."""
    fields = fields_of(contract)
    if not fields.is_plain:
        raise NoFastPath(f"{contract.__name__}: not only its fields decide whether a message is valid")
    return {name: _field_sql(schema, _raw(name), quoted(name), fields) for name, schema in fields.schemas.items()}


def _raw(name: str) -> str:
    """The column that holds a field's JSON text."""
    return quoted(f"raw {name}")


def _keys(contract: type[Contract]) -> str:
    """A condition on the names in the object: all required names, no unknown name, no name twice.

    If the lengths of the known fields and their separators, without spaces, add up to the length of the text, the text
    has no other fields. This is safe only if DuckDB writes no field longer than it is in the message (`may_grow`). Only
    other texts need the slower check of the list of names.
    """
    fields = fields_of(contract)
    optional = [name for name, schema in fields.schemas.items() if _may_be_absent(schema)]
    required = [name for name in fields.schemas if name not in optional]
    usual = ", ".join(_list(names) for names in (list(fields.schemas), required))
    # `try`, because the expression is also evaluated for texts that are not JSON.
    keys = 'try(json_keys("json text"))'
    listed = (
        f"case when {keys} in ({usual}) then true else len({keys}) = len(list_distinct({keys})) "
        f"and list_has_all({keys}, {_list(required)}) and list_has_all({_list(fields.schemas)}, {keys}) end"
    )
    if not required or any(field.may_grow for field in _fields(contract).values()):
        return listed
    # For each field: its name in quotes, a colon and a comma (4 characters). The two braces without the comma after the
    # last field add 1.
    sizes = " + ".join(f"coalesce(strlen({_raw(name)}) + {len(name.encode()) + 4}, 0)" for name in fields.schemas)
    return f'case when strlen("json text") = {sizes} + 1 then true else {listed} end'


def _may_be_absent(schema: Any) -> bool:
    # Only the default null is supported: SQL could not distinguish another default from an explicit null.
    return schema["type"] == "default" and "default" in schema and schema["default"] is None


def _list(names: Iterable[str]) -> str:
    return f"[{', '.join(literal(name) for name in names)}]::varchar[]"


def _field_sql(schema: Any, raw: str, name: str, fields: Fields) -> FieldSql:
    """The field in SQL, from its JSON text (the column `raw`) and its value (the column `name`)."""
    schema = fields.resolved(schema)
    kind = schema["type"]
    if kind == "default":
        if "default" in schema and not _may_be_absent(schema):
            raise NoFastPath("a default that is not null")
        if "default_factory" in schema or schema.get("validate_default"):
            raise NoFastPath("a default that is computed")
        return _field_sql(schema["schema"], raw, name, fields)
    if kind == "nullable":
        inner = _field_sql(schema["schema"], raw, name, fields)
        return replace(inner, check=f"{raw} is null or ({inner.check})")
    try:
        make = _KINDS[kind]
    except KeyError:
        raise NoFastPath(f"pydantic's {kind}") from None
    return make(schema, raw, name)


def _only(schema: Any, *known: str) -> None:
    if unknown := {key for key, value in schema.items() if value is not None} - _META - set(known):
        raise NoFastPath(f"{schema['type']} with {', '.join(sorted(unknown))}")


def _text(raw: str) -> str:
    r"""The string in a JSON text. Escapes are rare and slow to decode, so only texts with a `\` are decoded."""
    return rf"case when contains({raw}, '\') then json_extract_string({raw}, '$') else {_inside(raw)} end"


def _inside(raw: str) -> str:
    """A JSON string without its quotes."""
    return f"substring({raw}, 2, length({raw}) - 2)"


def _string(schema: Any, raw: str, name: str) -> FieldSql:
    _only(schema, "pattern", "min_length", "max_length")
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and _ASCII_PATTERN.fullmatch(pattern):
        whole = literal(f'"{_re2(pattern)[1:-1]}"')
        lengths = {">=": schema.get("min_length"), "<=": schema.get("max_length")}
        bounds = [
            f"strlen({raw}) {operator} {length + 2}" for operator, length in lengths.items() if length is not None
        ]
        return FieldSql(_inside(raw), " and ".join([f"regexp_full_match({raw}, {whole})", *bounds]))
    # Texts with a NUL are excluded: it would end a C string.
    checks = [f"starts_with({raw}, '\"')", rf"not contains({raw}, '\u0000')"]
    if "pattern" in schema:
        checks.append(f"regexp_matches({name}, {literal(_re2(schema['pattern']))})")
    if "min_length" in schema:
        checks.append(f"length({name}) >= {schema['min_length']}")
    if "max_length" in schema:
        checks.append(f"length({name}) <= {schema['max_length']}")
    return FieldSql(_text(raw), " and ".join(checks))


def _re2(pattern: Any) -> str:
    """Translate a pattern of pydantic (Rust) for DuckDB (RE2), if it means the same in both; else raise NoFastPath."""
    if not isinstance(pattern, str) or not _PLAIN_PATTERN.fullmatch(pattern):
        raise NoFastPath("a pattern that engines might read differently")
    translated = re.sub(r"\\u([0-9a-f]{4})", r"\\x{\1}", pattern)
    if max([int(n) for n in re.findall(r"[0-9]+", "".join(re.findall(r"\{[0-9,]+\}", pattern)))], default=0) > 1000:
        raise NoFastPath("more repetitions than RE2 takes")
    return translated


def _integer(schema: Any, raw: str, name: str) -> FieldSql:
    _only(schema, *_BOUNDS)
    # The number, converted back to text, must equal the JSON text: 5.0, 1e18 and "5" could be cast to numbers too.
    return FieldSql(f"try_cast({raw} as bigint)", " and ".join([f"{name}::varchar = {raw}", *_bounds(schema, name)]))


def _float(schema: Any, raw: str, name: str) -> FieldSql:
    _only(schema, *_BOUNDS)
    number = f"regexp_full_match({raw}, {literal(_NUMBER)})"
    return FieldSql(f"try_cast({raw} as double)", " and ".join([number, *_bounds(schema, name)]), may_grow=True)


_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _bounds(schema: Any, name: str) -> Iterator[str]:
    for key, operator in _BOUNDS.items():
        if (bound := schema.get(key)) is not None:
            if type(bound) is int and abs(bound) < 2**63:
                yield f"{name} {operator} {bound}"
            elif type(bound) is float:
                # Cast, because DuckDB would compare a decimal literal in decimals.
                yield f"{name} {operator} {literal(repr(bound))}::double"
            else:
                raise NoFastPath("a bound that is no plain number")


def _boolean(schema: Any, raw: str, name: str) -> FieldSql:
    _only(schema)
    return FieldSql(f"{raw} = 'true'", f"{raw} in ('true', 'false')")


def _one_of(values: Iterable[Any], raw: str) -> FieldSql:
    values = list(values)
    if all(type(value) is int for value in values):
        texts, value = [str(value) for value in values], f"try_cast({raw} as bigint)"
    elif all(type(value) is str and _PLAIN_TEXT.fullmatch(value) for value in values):
        texts, value = [f'"{value}"' for value in values], _inside(raw)
    else:
        raise NoFastPath("values that are not plain")
    return FieldSql(value, f"{raw} in ({', '.join(literal(text) for text in texts)})")


def _enumeration(schema: Any, raw: str, name: str) -> FieldSql:
    _only(schema, "cls", "members", "sub_type")
    if schema.get("sub_type") != "str":
        raise NoFastPath("an enumeration of other values than texts")
    return _one_of([member.value for member in schema["members"]], raw)


def _literal_value(schema: Any, raw: str, name: str) -> FieldSql:
    _only(schema, "expected")
    return _one_of(schema["expected"], raw)


def _version(schema: Any, raw: str, name: str) -> FieldSql:
    if schema["schema"]["type"] != "literal":
        raise NoFastPath("a version that is no literal")
    return _literal_value(schema["schema"], raw, name)


def _time(schema: Any, raw: str, name: str) -> FieldSql:
    pattern, lowest, highest = literal(f'"{_TIME}"'), contract_types.EARLIEST, contract_types.LATEST
    return FieldSql(
        # timestamptz, because DuckDB's plain TIMESTAMP would ignore the offset.
        f"try_cast({_inside(raw)} as timestamptz)",
        f"regexp_full_match({raw}, {pattern}) and {name} >= '{lowest.isoformat()}'::timestamptz "
        f"and {name} < '{highest.isoformat()}'::timestamptz",
    )


def _day(schema: Any, raw: str, name: str) -> FieldSql:
    pattern, lowest, highest = literal(f'"{_DATE}"'), contract_types.EARLIEST, contract_types.LATEST
    return FieldSql(
        f"try_cast({_inside(raw)} as date)",
        f"regexp_full_match({raw}, {pattern}) and {name} >= '{lowest.date()}'::date "
        f"and {name} < '{highest.date()}'::date",
    )


def _function(schema: Any, raw: str, name: str) -> FieldSql:
    """Support the validators of `include.streams.contracts`; for any other validator raise NoFastPath."""
    chain, inner = [], schema
    while inner["type"].startswith("function-"):
        function = inner["function"]["function"]
        chain.append((inner["type"], getattr(function, "__func__", function)))
        inner = inner["schema"]
    for known, kind, make in _VALIDATORS:
        if chain == known and inner["type"] == kind:
            return make(schema, raw, name)
    raise NoFastPath("a validator that is not the library's")


_VALIDATORS: list[tuple[list[tuple[str, Any]], str, Callable[[Any, str, str], FieldSql]]] = [
    ([("function-before", Contract._version_is_an_integer.__func__)], "literal", _version),
    (
        [("function-after", contract_types._to_utc), ("function-before", contract_types._from_rfc3339)],
        "datetime",
        _time,
    ),
    (
        [("function-after", contract_types._date_in_bounds), ("function-before", contract_types._from_iso_date)],
        "date",
        _day,
    ),
]
_KINDS: dict[str, Callable[[Any, str, str], FieldSql]] = {
    "str": _string,
    "int": _integer,
    "float": _float,
    "bool": _boolean,
    "enum": _enumeration,
    "literal": _literal_value,
    "function-before": _function,
    "function-after": _function,
}
