"""Contracts for topics that somebody else defines.

A foreign contract names the fields that are picked from a message, and the source of each field: a path in the JSON
payload (`At`), or a header (`FromHeader`). Picked fields are checked as strictly as the fields of your own contracts.
The rest of the payload may be anything and may change at any time.

    class Push(ForeignContract):
        repository: Annotated[Line, At("repository.full_name"), Field(max_length=140)]
        pushed_at: Annotated[UtcTime, At("head_commit.timestamp")] | None = None
        delivery: Annotated[Identifier, FromHeader("X-GitHub-Delivery")]
        ref: Annotated[Line, Field(max_length=200)]  # without a source: the top-level member of the same name
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json

from include.streams.compat.models import model_schema
from include.streams.contracts.model import Contract
from include.streams.contracts.violations import ContractViolation, Reason, framing, json_type

# The headers of a message, in the order of the record.
Headers = Sequence[tuple[str, bytes | None]]

_MEMBER = re.compile(r'[^"\\\x00-\x1f]{1,100}')
_HEADER = re.compile(r"[!-~]([ -~]{0,98}[!-~])?")
_TYPE_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,100}")
_WRAPPERS = ("default", "nullable", "function-before", "function-after", "function-wrap")


@dataclass(frozen=True)
class At:
    """Picks a field from a path in the payload.

    If a member on the path is missing, or one before its end is null, the field is missing: its default applies, or the
    message is a dead letter. If a member before the path's end is a list, a text or a number, the type is wrong.

    Attributes:
        path: Names of members, joined by dots: "repository.owner.login". A tuple of names if a name contains a dot.

    Raises:
        ValueError: The path is empty, or a name holds a character that JSON escapes.
    """

    path: str | tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names or not all(_MEMBER.fullmatch(name) for name in self.names):
            raise ValueError(
                f"At({self.path!r}): write the names of members joined by dots, such as 'repository.owner.login', each "
                "of 1 to 100 characters without quotes, backslashes and control characters"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the members on the path, from the top."""
        return self.path if isinstance(self.path, tuple) else tuple(self.path.split("."))

    def __str__(self) -> str:
        return ".".join(self.names)


@dataclass(frozen=True)
class FromHeader:
    """Picks a field from a header of the record, as text.

    If a record has several headers of this name, the last of them is used. A header without a value counts as missing.

    Attributes:
        name: The header's name; upper and lower case differ.

    Raises:
        ValueError: The name is empty or has other characters than printable ASCII.
    """

    name: str

    def __post_init__(self) -> None:
        if not _HEADER.fullmatch(self.name):
            raise ValueError(f"FromHeader({self.name!r}): a header's name has 1 to 100 printable ASCII characters")

    def __str__(self) -> str:
        return f"header {self.name}"


Source = At | FromHeader


class NotWanted(Exception):
    """No contract of the topic's union takes a message of this type: it is counted, and has no effect."""


class ForeignContract(Contract):
    """The base class of a contract for a topic that somebody else defines: it names what is picked from a message.

    The message needs no version. Its fields may have any names in the payload, and other members are ignored.

    Attributes:
        contract_version: The version of the picked part. Raise it for a change that `make contracts` calls breaking,
            for example when a field gets narrower bounds: messages that were valid before may become dead letters.
    """

    contract_version: ClassVar[int] = 1


class ForeignPart(BaseModel):
    """The base class of an object inside of a picked value, such as each item of a picked list.

    Its members have the names of its fields. It ignores other members, as a foreign contract does.
    """

    model_config = ConfigDict(
        strict=True,
        extra="ignore",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        json_schema_extra={"additionalProperties": True},
    )


# Compared by identity, because a topic must be hashable.
@dataclass(frozen=True, eq=False)
class ContractUnion:
    """The contracts of a topic with several types of messages.

    Attributes:
        by: The source of a message's type.
        contracts: {type: contract}. A message of another type is not wanted: it is counted, has no effect and is no
            dead letter. A message without a type is a dead letter.
        version: The version of the union, as `ForeignContract.contract_version`.

    Raises:
        ValueError: The union cannot work as declared; the text says what to change.
    """

    by: Source
    contracts: Mapping[str, type[ForeignContract]]
    version: int = 1

    def __post_init__(self) -> None:
        if not self.contracts:
            raise ValueError("a union needs at least one contract: {type: contract}")
        for kind, contract in self.contracts.items():
            if not _TYPE_NAME.fullmatch(kind):
                raise ValueError(f"type {kind!r} of a union: use 1 to 100 letters, digits and '_.:/-'")
            if not isinstance(contract, type) or not issubclass(contract, ForeignContract):
                raise ValueError(
                    f"type {kind!r} of a union: {contract!r} is no ForeignContract; your own topics have one contract "
                    "each, so create a topic for each type of message"
                )
        names = [contract.contract_name for contract in self.contracts.values()]
        if len(set(names)) < len(names):
            raise ValueError(
                f"two types of a union have contracts of the same name ({', '.join(names)}), so an event of one would "
                "count as a repeated event of the other: give each type a class with a different `contract_name`"
            )

    def of(self, payload: Payload, headers: Headers) -> type[ForeignContract]:
        """The contract of a message.

        Args:
            payload: The message's payload. It is read only if the type is in the payload.
            headers: The message's headers.

        Returns:
            The contract for the message's type.

        Raises:
            NotWanted: No contract takes the message's type.
            ContractViolation: The message does not name its type in a way that can be read.
        """
        kind = payload.at(self.by) if isinstance(self.by, At) else header_text(headers, self.by)
        if kind is ABSENT:
            raise ContractViolation(Reason.missing_field, f"{self.by} (missing)")
        if not isinstance(kind, str):
            raise ContractViolation(Reason.wrong_type, f"{self.by} (string_type)")
        if kind not in self.contracts:
            raise NotWanted
        return self.contracts[kind]


class _Absent:
    """The type of ABSENT."""


ABSENT = _Absent()


class _Ambiguous(dict):
    """A JSON object in which names occur more than once, so that two readers may read it differently.

    Attributes:
        repeated: The names that occur more than once.
    """

    repeated: frozenset[str]


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    ambiguous = _Ambiguous(members)
    # One pass: a hostile object may have a hundred thousand names, and a pass for each would take hours.
    numbers = Counter(name for name, _ in pairs)
    ambiguous.repeated = frozenset(name for name, number in numbers.items() if number > 1)
    return ambiguous


def _integer_of(text: str) -> int | float:
    # Python refuses to convert longer texts to integers. As a float, the number is infinite, which no contract accepts.
    return int(text) if len(text) <= 4_000 else float(text)


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object_of, parse_int=_integer_of, parse_constant=_refuse_constant)


class Payload:
    """A message's value, parsed when a member is first read.

    Args:
        value: The message's value; None for a tombstone.
        max_bytes: The largest value that the topic allows.
    """

    def __init__(self, value: bytes | None, max_bytes: int) -> None:
        self._value = value
        self._max_bytes = max_bytes

    @cached_property
    def members(self) -> dict[str, Any]:
        """The members of the JSON object.

        Raises:
            ContractViolation: The value is missing, too large or no JSON object.
        """
        value = self._value
        if value is None:
            raise ContractViolation(Reason.tombstone, "the message has no value")
        if len(value) > self._max_bytes:
            raise ContractViolation(Reason.too_large, f"{len(value)} bytes, at most {self._max_bytes}")
        try:
            document = _DECODER.decode(value.decode())
        except UnicodeDecodeError as error:
            text = f"invalid UTF-8 at byte {error.start}{framing(value)}"
            raise ContractViolation(Reason.not_utf8, text) from None
        except json.JSONDecodeError as error:  # its text has a position, but no content of the message
            raise ContractViolation(Reason.not_json, f"{error}{framing(value)}") from None
        except (ValueError, RecursionError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else "a number that JSON does not have"
            raise ContractViolation(Reason.not_json, why) from None
        if not isinstance(document, dict):
            raise ContractViolation(Reason.wrong_type, f"a JSON {json_type(document)}, not an object")
        return document

    def at(self, source: At) -> Any:
        """The value at a path; ABSENT if there is none.

        Args:
            source: The path.

        Raises:
            ContractViolation: The payload is no JSON object, a member before the path's end is no object, or a name
                occurs twice on the path or in its value.
        """
        node: Any = self.members
        for depth, name in enumerate(source.names):
            if node is None:
                return ABSENT
            if not isinstance(node, dict):
                raise ContractViolation(Reason.wrong_type, f"{'.'.join(source.names[:depth])} (not an object)")
            if isinstance(node, _Ambiguous) and name in node.repeated:
                raise _occurs_twice(".".join(source.names[: depth + 1]))
            if name not in node:
                return ABSENT
            node = node[name]
        if isinstance(node, dict | list) and any(isinstance(part, _Ambiguous) for part in _containers(node)):
            raise _occurs_twice(str(source))
        return node


def _occurs_twice(path: str) -> ContractViolation:
    return ContractViolation(Reason.not_json, f"{path}: a name occurs twice in one object")


def _containers(node: Any) -> Iterator[dict | list]:
    """All objects and lists in a value, including the value itself."""
    waiting = [node]
    while waiting:
        container = waiting.pop()
        yield container
        parts = container.values() if isinstance(container, dict) else container
        waiting += [part for part in parts if isinstance(part, dict | list)]


def header_text(headers: Headers, source: FromHeader) -> Any:
    """The text of a header; ABSENT if there is none.

    Args:
        headers: The message's headers.
        source: The header.

    Raises:
        ContractViolation: The header is not UTF-8.
    """
    values = [value for name, value in headers if name == source.name]
    if not values or values[-1] is None:
        return ABSENT
    try:
        return values[-1].decode()
    except UnicodeDecodeError as error:
        raise ContractViolation(Reason.not_utf8, f"{source}: invalid UTF-8 at byte {error.start}") from None


@cache
def sources_of(contract: type[ForeignContract]) -> dict[str, Source]:
    """The source of each field of a contract.

    Args:
        contract: The contract.

    Returns:
        {field: source}. The source of a field without an annotation is the top-level member of the field's name.

    Raises:
        ValueError: A field has two sources.
    """
    sources: dict[str, Source] = {}
    for name, field in contract.model_fields.items():
        declared = [*filter(_is_source, field.metadata), *_sources_in(field.annotation)]
        if len(declared) > 1:
            listed = ", ".join(map(str, declared))
            raise ValueError(f"{contract.__name__}.{name} has several sources ({listed}): keep one of them")
        sources[name] = declared[0] if declared else At((name,))
    return sources


def _is_source(annotation: Any) -> bool:
    return isinstance(annotation, At | FromHeader)


def _sources_in(annotation: Any) -> Iterator[Any]:
    """The sources inside `Annotated[...] | None`."""
    if get_origin(annotation) in (Annotated, Union, UnionType):
        for part in get_args(annotation):
            if _is_source(part):
                yield part
            else:
                yield from _sources_in(part)


def pick(contract: type[ForeignContract], payload: Payload, headers: Headers) -> bytes:
    """The JSON text of the picked fields, for the contract to validate.

    Args:
        contract: The contract.
        payload: The message's payload.
        headers: The message's headers.

    Raises:
        ContractViolation: The payload is no JSON object, or a picked value is ambiguous or no valid text.
    """
    # The payload is parsed even if every field comes from a header: a payload that cannot be read is never valid.
    _ = payload.members
    picked = {
        name: payload.at(source) if isinstance(source, At) else header_text(headers, source)
        for name, source in sources_of(contract).items()
    }
    present = {name: value for name, value in picked.items() if value is not ABSENT}
    try:
        # A number such as 1e999 is rounded to infinity. It is written as "Infinity", which no contract accepts.
        return to_json(present, inf_nan_mode="constants")
    except ValueError:
        raise ContractViolation(Reason.not_json, "half a surrogate pair in a picked text") from None


def check_foreign(contract: type[ForeignContract]) -> None:
    """Check the version and the sources of a foreign contract.

    Args:
        contract: The contract.

    Raises:
        ValueError: The contract cannot work as declared; the text names the field and the remedy.
    """
    if type(contract.contract_version) is not int or contract.contract_version < 1:
        raise ValueError(f"{contract.__name__}.contract_version must be a whole number of at least 1")
    for name, field in contract.model_fields.items():
        if field.validation_alias is not None:
            raise ValueError(
                f"{contract.__name__}.{name} has an alias: write `At({str(field.validation_alias)!r})` instead"
            )
    schema, definitions = model_schema(contract)
    while schema["type"] != "model-fields":
        schema = schema["schema"]
    for name, source in sources_of(contract).items():
        if isinstance(source, FromHeader) and not _takes_text(schema["fields"][name]["schema"], definitions):
            raise ValueError(
                f"{contract.__name__}.{name} comes from a header, which is text: declare it as a text, a time, a day, "
                "or an enumeration of texts"
            )


def _takes_text(schema: Any, definitions: Mapping[str, Any]) -> bool:
    while schema["type"] in (*_WRAPPERS, "definition-ref"):
        schema = definitions[schema["schema_ref"]] if schema["type"] == "definition-ref" else schema["schema"]
    if schema["type"] == "enum":
        return schema.get("sub_type") == "str"
    if schema["type"] == "literal":
        return all(isinstance(value, str) for value in schema["expected"])
    return schema["type"] in ("str", "datetime", "date")
