"""Repairs: what makes of a message that breaks its contract one that keeps it.

For messages that were sent while a producer was wrong: its owner has mended it, and what it sent before waits in the
dead-letter topic. A repair is a pure function of the message's value, so that a message repaired twice is the same
event twice; it must not invent what the event id is made of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from include.contracts.model import Contract
from include.contracts.topics import Topic
from include.contracts.violations import ContractViolation, Reason, has_duplicate_keys

# The new value, or None for a message that is not this repair's case. May raise ContractViolation: it is, but something
# else is wrong with it.
Mend = Callable[[bytes], bytes | None]


@dataclass(frozen=True)
class Repair:
    """One repair; `why` says what was wrong, for the people who read what a replay did."""

    name: str
    why: str
    mend: Mend


@dataclass(frozen=True)
class Mended:
    """A value that keeps its contract, its event, and the repairs that it took (none: it kept it as it was)."""

    value: bytes
    event: Contract
    repairs: tuple[str, ...]


class Repairs:
    """The repairs of a project, by topic, in the order in which they were registered."""

    def __init__(self) -> None:
        self._of: dict[str, list[Repair]] = {}

    def repair(self, topic: Topic, why: str) -> Callable[[Mend], Mend]:
        """Decorator: register a function for the topic's messages, under its own name."""

        def register(mend: Mend) -> Mend:
            self._add(topic, Repair(mend.__name__, why, mend))
            return mend

        return register

    def renamed(self, topic: Topic, why: str, fields: Mapping[str, str]) -> None:
        """Register a repair that gives fields of the object {found: right} their right names."""
        name = "renamed " + ", ".join(f"{found} to {right}" for found, right in fields.items())
        for right in fields.values():
            if right not in topic.contract.model_fields:
                raise ValueError(f"repair of topic {topic.name!r}: its contract has no field {right!r}")

        def rename(value: bytes) -> bytes | None:
            document = to_document(value)
            # With both names there, which of the two values is meant cannot be known.
            if document is None or not any(found in document for found in fields):
                return None
            if any(found in document and right in document for found, right in fields.items()):
                return None
            return to_value({fields.get(field, field): content for field, content in document.items()})

        self._add(topic, Repair(name, why, rename))

    def of(self, topic: Topic) -> tuple[Repair, ...]:
        """The topic's repairs."""
        return tuple(self._of.get(topic.name, ()))

    def mend(self, topic: Topic, value: bytes | None) -> Mended:
        """The value as it is if it keeps the contract, else after the repairs that it needs, each on top of the last.

        Raises ContractViolation, and nothing else whatever the bytes are, with what is still wrong after all repairs:
        anything else would stop a replay at this message.
        """
        applied: list[str] = []
        try:
            return Mended(value or b"", topic.parse(value), ())
        except ContractViolation as found:
            violation = found
        if value is None:
            raise violation
        for repair in self.of(topic):
            try:
                mended = repair.mend(value)
            except ContractViolation as found:
                violation = found
                continue
            except Exception as error:
                detail = f"the repair {repair.name!r} raised {type(error).__name__}"
                raise ContractViolation(Reason.rejected, detail) from error
            if mended is None or mended == value:
                continue
            value = mended
            applied.append(repair.name)
            try:
                return Mended(value, topic.parse(value), tuple(applied))
            except ContractViolation as found:
                violation = found
        raise violation

    def _add(self, topic: Topic, repair: Repair) -> None:
        if any(repair.name == other.name for other in self.of(topic)):
            raise ValueError(f"topic {topic.name!r} has a repair {repair.name!r} already")
        self._of.setdefault(topic.name, []).append(repair)


def to_document(value: bytes) -> dict[str, Any] | None:
    """The JSON object in a message's value; None when there is none, or one that two readers would read differently."""
    try:
        document = json.loads(value.decode())
        if isinstance(document, dict) and not has_duplicate_keys(value):
            return document
    except (ValueError, RecursionError):
        pass
    return None


def to_value(document: Mapping[str, Any]) -> bytes:
    """A message's value from its JSON object: the same bytes for the same object."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
