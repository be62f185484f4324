"""What samples show of each field: where it is, how often it is present, and which values it has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from include.streams.contracts import At, FromHeader
from scaffold.guessing import guess
from scaffold.samples import Sample

Source = At | FromHeader
HEADER = "header:"
# Deeper members are not offered; they can be named in FIELDS.
MAX_DEPTH = 12


@dataclass
class Observed:
    """A field of the samples.

    Attributes:
        source: Where it is.
        order: Its place among all fields, by first appearance.
        values: Its values that are not null, one for each sample that has one.
        others: What else is at its place in a sample: "list" or "object".
    """

    source: Source
    order: int
    values: list[Any] = field(default_factory=list)
    others: set[str] = field(default_factory=set)

    @cached_property
    def is_scalar(self) -> bool:
        """Whether a type of a contract takes all its values."""
        return not self.others and bool(self.values) and guess(self.values) is not None

    @property
    def depth(self) -> int:
        return len(self.source.names) if isinstance(self.source, At) else 0

    @property
    def name(self) -> str:
        """As it is written in FIELDS, KEY, ID and TYPE."""
        return str(self.source) if isinstance(self.source, At) else f"{HEADER}{self.source.name}"


def observe(samples: Sequence[Sample]) -> dict[str, Observed]:
    """{name: field} of all fields of the samples, in the order of their first appearance."""
    found: dict[str, Observed] = {}
    for sample in samples:
        for source, value in (*_headers(sample), *_members(sample.document, ())):
            name = Observed(source, 0).name
            seen = found.setdefault(name, Observed(source, len(found)))
            if seen.source != source:
                # "a.b" is a member's name and a path: the first one counts.
                continue
            if isinstance(value, dict | list):
                seen.others.add("list" if isinstance(value, list) else "object")
            elif value is not None:
                seen.values.append(value)
    return found


def _headers(sample: Sample) -> Iterator[tuple[Source, Any]]:
    for name, value in sample.headers.items():
        try:
            yield FromHeader(name), value
        except ValueError:
            continue


def _members(document: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[Source, Any]]:
    for name, value in document.items():
        inner = (*path, name)
        try:
            yield _at(inner), value
        except ValueError:
            # A name that JSON escapes cannot be picked.
            continue
        if isinstance(value, dict) and len(inner) < MAX_DEPTH:
            yield from _members(value, inner)


def _at(path: tuple[str, ...]) -> At:
    return At(path) if any("." in name for name in path) else At(".".join(path))


def value_of(sample: Sample, source: Source) -> Any:
    """The value of a sample's field; None if there is none."""
    if isinstance(source, FromHeader):
        return sample.headers.get(source.name)
    node: Any = sample.document
    for name in source.names:
        node = node.get(name) if isinstance(node, dict) else None
    return node


def as_text(values: Iterable[Any]) -> list[str]:
    """Values as texts that are equal if the values are."""
    return [value if isinstance(value, str) else json.dumps(value, sort_keys=True) for value in values]
