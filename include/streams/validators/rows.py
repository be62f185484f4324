"""From raw text to rows of a contract, in sets.

`Topic.parse` defines which messages are valid. A screen, which is an SQL query derived from the contract, accepts a
text only when it can prove that `parse` would accept the text with equal values. `parse` examines every other text, one
by one, and gives the reason when a text is invalid. So the outcome is that of `parse` for every contract, and it is
fast for valid messages.

The screen falls back to `parse` for every message of a contract if it cannot prove something about the contract: an
unknown pydantic schema, a pattern that engines might read differently, or a missing `event_id_sql`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from include.streams.contracts import Contract, ContractViolation, Topic
from include.streams.contracts import types as contract_types
from include.streams.lake.engine import literal, quoted
from include.streams.lake.types import sql_type
from include.streams.validators.columns import Fields, columns_of, fields_of, row_of

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
# Limits the digits, so that a double is not rounded twice, and the exponent, so that it does not overflow.
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
# Columns of a screen in addition to the contract's. Their names have a space, which no field of a contract has.
EXAMINE, TEXT = "to examine", "landed text"
REPLACEMENT = "\ufffd"
# A producer can write any number into the timestamp in milliseconds: microseconds there mean the year 55000, which no
# reader of a table in Python accepts.
RECORD_TIME = 'case when "timestamp" >= \'0001-01-02\' and "timestamp" < \'9999-12-31\' then "timestamp" end'
_META = {"type", "metadata", "ref", "serialization", "strict"}


class NotScreened(Exception):
    """The screen cannot prove that messages of this contract are valid."""


class ScreenDiffers(Exception):
    """The screen has accepted a message that `parse` rejects or reads differently.

    The fault is in the screen or in `event_id_sql`.
    """


@dataclass(frozen=True)
class Screened:
    """A field in SQL.

    Attributes:
        value: The expression of the field's value.
        check: A condition that holds only if `parse` accepts the field with that value.
        may_grow: Whether DuckDB may write the value with more characters than it has in the message, such as
            1000000000.0 for 1e9.
    """

    value: str
    check: str
    may_grow: bool = False


def screen(topic: Topic, source: str) -> str:
    """A query that screens messages, with one row for each message.

    Args:
        topic: The topic of the messages.
        source: An SQL query with the columns partition, offset, timestamp and value.

    Returns:
        An SQL query with the contract's columns, event_id, kafka_partition, kafka_offset, kafka_timestamp, EXAMINE and
        TEXT. EXAMINE is true if `parse` must examine the message. TEXT then holds its text, and the contract's columns
        must not be used.
    """
    position = f'"partition" as kafka_partition, "offset" as kafka_offset, {RECORD_TIME} as kafka_timestamp'
    columns = columns_of(topic.contract)
    try:
        fields, keys = _fields(topic.contract), _keys(topic.contract)
        event_id = topic.contract.event_id_sql
        if event_id is None:
            raise NotScreened("no event_id_sql")
    except NotScreened:
        nulls = ", ".join(f"null::{sql_type(c.iceberg_type)} as {quoted(c.name)}" for c in columns)
        return (
            f"select {nulls}, null::varchar as event_id, {position}, "
            f"true as {quoted(EXAMINE)}, value as {quoted(TEXT)} from ({source})"
        )
    shape = json.dumps({name: "JSON" for name in fields})
    # Excludes a trailing comma, which DuckDB's parser accepts. Excludes U+FFFD, which may replace bytes that were not
    # UTF-8: only the original record shows this.
    readable = (
        f"value is not null and strlen(value) <= {topic.max_bytes} "
        f"and not contains(value, '{REPLACEMENT}') "
        r"and not regexp_matches(value, ',[ \t\r\n]*\}[ \t\r\n]*$')"
    )
    raw = ", ".join(f"json.{quoted(name)}::varchar as {_raw(name)}" for name in fields)
    values = ", ".join(f"{field.value} as {quoted(name)}" for name, field in fields.items())
    checks = " and ".join(f"({field.check})" for field in fields.values())
    names = ", ".join(quoted(c.name) for c in columns)
    return f"""
        with parsed as (
            select {position}, value as "json text",
                case when {readable} then try(json_transform(value, {literal(shape)})) end as json
            from ({source})
        ),
        texts as (
            select kafka_partition, kafka_offset, kafka_timestamp, "json text", json is not null as "is json", {raw}
            from parsed
        ),
        typed as (select *, {values} from texts),
        checked as (select *, not coalesce("is json" and {checks} and {keys}, false) as {quoted(EXAMINE)} from typed)
        select {names}, case when not {quoted(EXAMINE)} then {event_id} end as event_id,
            kafka_partition, kafka_offset, kafka_timestamp,
            {quoted(EXAMINE)}, case when {quoted(EXAMINE)} then "json text" end as {quoted(TEXT)}
        from checked
    """


def examine(topic: Topic, text: str | bytes | None) -> dict[str, Any]:
    """The row of a message from `parse`.

    Args:
        topic: The topic of the message.
        text: The message's value as text or bytes; None for a tombstone.

    Returns:
        {column: value}, with the event id.

    Raises:
        ContractViolation: The message breaks its contract, or a column cannot hold a value.
    """
    value = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return row_of(topic.parse(value))


def verify(connection: DuckDBPyConnection, topic: Topic, sample: str) -> int:
    """Screen a sample, and compare each accepted row with the result of `parse`.

    The comparison is needed because `event_id_sql` is a second, manual definition of the property `event_id`, and
    because engines change.

    Args:
        connection: A DuckDB connection with MACROS.
        topic: The topic of the messages.
        sample: An SQL query with the columns partition, offset, timestamp and value.

    Returns:
        The number of compared rows.

    Raises:
        ScreenDiffers: A row differs. No row of the run may be written.
    """
    query = f"""
        select screened.*, sample.value as "json text"
        from ({screen(topic, sample)}) screened
        join ({sample}) sample
            on sample."partition" = screened.kafka_partition and sample."offset" = screened.kafka_offset
        where not {quoted(EXAMINE)}
    """
    found = connection.sql(query)
    names = found.columns
    compared = 0
    for values in found.fetchall():
        row = dict(zip(names, values, strict=True))
        where = f"topic {topic.name}: partition {row['kafka_partition']} offset {row['kafka_offset']}"
        try:
            expected = examine(topic, row["json text"])
        except ContractViolation as violation:
            raise ScreenDiffers(f"{where}: the screen accepts it, the contract does not ({violation})") from None
        for name, value in expected.items():
            if row[name] != value or type(row[name]) is not type(value):
                hint = "; compare event_id_sql with event_id" if name == "event_id" else ""
                raise ScreenDiffers(f"{where}: the screen and the contract read {name} differently{hint}")
        compared += 1
    return compared


def is_screened(contract: type[Contract]) -> bool:
    """Whether the screen can accept messages of this contract, so that `parse` need not examine each one."""
    try:
        return contract.event_id_sql is not None and bool(_fields(contract)) and bool(_keys(contract))
    except NotScreened:
        return False


@cache
def _fields(contract: type[Contract]) -> dict[str, Screened]:
    """{name: field in SQL} of the contract's fields; raises NotScreened."""
    fields = fields_of(contract)
    if not fields.is_plain:
        raise NotScreened(f"{contract.__name__}: more than its fields decides")
    return {name: _screened(schema, _raw(name), quoted(name), fields) for name, schema in fields.schemas.items()}


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


def _screened(schema: Any, raw: str, name: str, fields: Fields) -> Screened:
    """The field in SQL, from its JSON text (the column `raw`) and its value (the column `name`)."""
    schema = fields.resolved(schema)
    kind = schema["type"]
    if kind == "default":
        if "default" in schema and not _may_be_absent(schema):
            raise NotScreened("a default that is not null")
        if "default_factory" in schema or schema.get("validate_default"):
            raise NotScreened("a default that is computed")
        return _screened(schema["schema"], raw, name, fields)
    if kind == "nullable":
        inner = _screened(schema["schema"], raw, name, fields)
        return replace(inner, check=f"{raw} is null or ({inner.check})")
    try:
        make = _KINDS[kind]
    except KeyError:
        raise NotScreened(f"pydantic's {kind}") from None
    return make(schema, raw, name)


def _only(schema: Any, *known: str) -> None:
    if unknown := {key for key, value in schema.items() if value is not None} - _META - set(known):
        raise NotScreened(f"{schema['type']} with {', '.join(sorted(unknown))}")


def _text(raw: str) -> str:
    r"""The string in a JSON text. Escapes are rare and slow to decode, so only texts with a `\` are decoded."""
    return rf"case when contains({raw}, '\') then json_extract_string({raw}, '$') else {_inside(raw)} end"


def _inside(raw: str) -> str:
    """A JSON string without its quotes."""
    return f"substring({raw}, 2, length({raw}) - 2)"


def _string(schema: Any, raw: str, name: str) -> Screened:
    _only(schema, "pattern", "min_length", "max_length")
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and _ASCII_PATTERN.fullmatch(pattern):
        whole = literal(f'"{_re2(pattern)[1:-1]}"')
        lengths = {">=": schema.get("min_length"), "<=": schema.get("max_length")}
        bounds = [
            f"strlen({raw}) {operator} {length + 2}" for operator, length in lengths.items() if length is not None
        ]
        return Screened(_inside(raw), " and ".join([f"regexp_full_match({raw}, {whole})", *bounds]))
    # Texts with a NUL are excluded, because they would have to pass through C strings.
    checks = [f"starts_with({raw}, '\"')", rf"not contains({raw}, '\u0000')"]
    if "pattern" in schema:
        checks.append(f"regexp_matches({name}, {literal(_re2(schema['pattern']))})")
    if "min_length" in schema:
        checks.append(f"length({name}) >= {schema['min_length']}")
    if "max_length" in schema:
        checks.append(f"length({name}) <= {schema['max_length']}")
    return Screened(_text(raw), " and ".join(checks))


def _re2(pattern: Any) -> str:
    """Translate a pattern of pydantic (Rust) for DuckDB (RE2), if it means the same in both; else raise NotScreened."""
    if not isinstance(pattern, str) or not _PLAIN_PATTERN.fullmatch(pattern):
        raise NotScreened("a pattern that engines might read differently")
    translated = re.sub(r"\\u([0-9a-f]{4})", r"\\x{\1}", pattern)
    if max([int(n) for n in re.findall(r"[0-9]+", "".join(re.findall(r"\{[0-9,]+\}", pattern)))], default=0) > 1000:
        raise NotScreened("more repetitions than RE2 takes")
    return translated


def _integer(schema: Any, raw: str, name: str) -> Screened:
    _only(schema, *_BOUNDS)
    # The number as text must equal the JSON text, because 5.0, 1e18 and "5" could be cast to numbers too.
    return Screened(f"try_cast({raw} as bigint)", " and ".join([f"{name}::varchar = {raw}", *_bounds(schema, name)]))


def _float(schema: Any, raw: str, name: str) -> Screened:
    _only(schema, *_BOUNDS)
    number = f"regexp_full_match({raw}, {literal(_NUMBER)})"
    return Screened(f"try_cast({raw} as double)", " and ".join([number, *_bounds(schema, name)]), may_grow=True)


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
                raise NotScreened("a bound that is no plain number")


def _boolean(schema: Any, raw: str, name: str) -> Screened:
    _only(schema)
    return Screened(f"{raw} = 'true'", f"{raw} in ('true', 'false')")


def _one_of(values: Iterable[Any], raw: str) -> Screened:
    values = list(values)
    if all(type(value) is int for value in values):
        texts, value = [str(value) for value in values], f"try_cast({raw} as bigint)"
    elif all(type(value) is str and _PLAIN_TEXT.fullmatch(value) for value in values):
        texts, value = [f'"{value}"' for value in values], _inside(raw)
    else:
        raise NotScreened("values that are not plain")
    return Screened(value, f"{raw} in ({', '.join(literal(text) for text in texts)})")


def _enumeration(schema: Any, raw: str, name: str) -> Screened:
    _only(schema, "cls", "members", "sub_type")
    if schema.get("sub_type") != "str":
        raise NotScreened("an enumeration of other values than texts")
    return _one_of([member.value for member in schema["members"]], raw)


def _literal_value(schema: Any, raw: str, name: str) -> Screened:
    _only(schema, "expected")
    return _one_of(schema["expected"], raw)


def _version(schema: Any, raw: str, name: str) -> Screened:
    if schema["schema"]["type"] != "literal":
        raise NotScreened("a version that is no literal")
    return _literal_value(schema["schema"], raw, name)


def _time(schema: Any, raw: str, name: str) -> Screened:
    pattern, lowest, highest = literal(f'"{_TIME}"'), contract_types.EARLIEST, contract_types.LATEST
    return Screened(
        # timestamptz, because DuckDB's plain TIMESTAMP would ignore the offset.
        f"try_cast({_inside(raw)} as timestamptz)",
        f"regexp_full_match({raw}, {pattern}) and {name} >= '{lowest.isoformat()}'::timestamptz "
        f"and {name} < '{highest.isoformat()}'::timestamptz",
    )


def _day(schema: Any, raw: str, name: str) -> Screened:
    pattern, lowest, highest = literal(f'"{_DATE}"'), contract_types.EARLIEST, contract_types.LATEST
    return Screened(
        f"try_cast({_inside(raw)} as date)",
        f"regexp_full_match({raw}, {pattern}) and {name} >= '{lowest.date()}'::date "
        f"and {name} < '{highest.date()}'::date",
    )


def _function(schema: Any, raw: str, name: str) -> Screened:
    """Support the validators of `include.streams.contracts`; for any other validator raise NotScreened."""
    chain, inner = [], schema
    while inner["type"].startswith("function-"):
        function = inner["function"]["function"]
        chain.append((inner["type"], getattr(function, "__func__", function)))
        inner = inner["schema"]
    for known, kind, make in _VALIDATORS:
        if chain == known and inner["type"] == kind:
            return make(schema, raw, name)
    raise NotScreened("a validator of its own")


_VALIDATORS: list[tuple[list[tuple[str, Any]], str, Callable[[Any, str, str], Screened]]] = [
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
_KINDS: dict[str, Callable[[Any, str, str], Screened]] = {
    "str": _string,
    "int": _integer,
    "float": _float,
    "bool": _boolean,
    "enum": _enumeration,
    "literal": _literal_value,
    "function-before": _function,
    "function-after": _function,
}
