"""Repairs: functions that fix messages that break their contract, before a replay.

They are for messages from a time when a producer had a fault. Its owner has corrected the producer, and the earlier
messages are in the dead-letter topic. A repair is a pure function of the message's value, so that two repairs of a
message give the same event. It must not invent values of fields from which the event id is derived.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from include.streams.contracts.model import Contract
from include.streams.contracts.topics import Topic
from include.streams.contracts.violations import ContractViolation, Reason, has_duplicate_keys

# Returns the new value, or None if the repair does not apply to the message. May raise ContractViolation if the repair
# applies, but the message has another fault.
Mend = Callable[[bytes], bytes | None]


@dataclass(frozen=True)
class Repair:
    """One repair; `why` describes the fault of the producer, for people who read the report of a replay."""

    name: str
    why: str
    mend: Mend


@dataclass(frozen=True)
class Mended:
    """A value that keeps its contract, its event, and the names of the applied repairs (empty if it was valid)."""

    value: bytes
    event: Contract
    repairs: tuple[str, ...]


class Repairs:
    """The repairs of a project, by topic, in the order in which they were registered."""

    def __init__(self) -> None:
        self._of: dict[str, list[Repair]] = {}

    def repair(self, topic: Topic, why: str) -> Callable[[Mend], Mend]:
        """Decorator: register a function as a repair, under the function's name.

        Args:
            topic: The topic of the messages.
            why: The fault of the producer, for people.

        Returns:
            The decorator. The function gets the message's value, and returns the new value, or None if the repair does
            not apply to the message.
        """

        def register(mend: Mend) -> Mend:
            self._add(topic, Repair(mend.__name__, why, mend))
            return mend

        return register

    def renamed(self, topic: Topic, why: str, fields: Mapping[str, str]) -> None:
        """Register a repair that renames top-level fields.

        A message that has both names of a field is not repaired: the correct value cannot be known.

        Args:
            topic: The topic of the messages.
            why: The fault of the producer, for people.
            fields: {wrong name: correct name}.

        Raises:
            ValueError: The contract has no field with the correct name.
        """
        name = "renamed " + ", ".join(f"{found} to {right}" for found, right in fields.items())
        for right in fields.values():
            if right not in topic.contract.model_fields:
                raise ValueError(f"repair of topic {topic.name!r}: its contract has no field {right!r}")

        def rename(value: bytes) -> bytes | None:
            document = to_document(value)
            # With both names present, the correct value cannot be known.
            if document is None or not any(found in document for found in fields):
                return None
            if any(found in document and right in document for found, right in fields.items()):
                return None
            return to_value({fields.get(field, field): content for field, content in document.items()})

        self._add(topic, Repair(name, why, rename))

    def of(self, topic: Topic) -> tuple[Repair, ...]:
        """The topic's repairs.

        Args:
            topic: The topic.

        Returns:
            The repairs, in the order of their registration.
        """
        return tuple(self._of.get(topic.name, ()))

    def mend(self, topic: Topic, value: bytes | None) -> Mended:
        """Apply the topic's repairs, one after the other, until the value keeps the contract.

        No bytes may cause another exception than ContractViolation: it would stop a replay at this message.

        Args:
            topic: The topic of the message.
            value: The message's value. A valid value is returned without repairs.

        Returns:
            The valid value with its event and the applied repairs.

        Raises:
            ContractViolation: The value still breaks the contract after all repairs, or a repair failed.
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
    """The JSON object in a message's value; None without an object, or if a name occurs twice in an object.

    Two readers could read an object with a duplicate name differently.
    """
    try:
        document = json.loads(value.decode())
        if isinstance(document, dict) and not has_duplicate_keys(value):
            return document
    except (ValueError, RecursionError):
        pass
    return None


def to_value(document: Mapping[str, Any]) -> bytes:
    """Encode a JSON object as a message's value: the same bytes for the same object."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
