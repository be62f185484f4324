"""Repairs: functions that fix invalid messages before a replay.

They are for messages that a producer sent while it had a fault. The producer has been corrected since, and the invalid
messages are in the dead-letter topic. A repair is a pure function of the message's value, so that repairing a message
twice gives the same event. It must not invent values of fields from which the event id is derived. A repair always gets
and returns the whole payload, also for a foreign contract. Headers are not changed.

If the topic's schemas are in a registry, a repair gets and returns the JSON text of the value. The repaired text is
encoded with the schema of the message, or with the topic's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from include.streams.contracts.foreign import At, ForeignContract, Headers, NotWanted, sources_of
from include.streams.contracts.model import Contract
from include.streams.contracts.topics import Topic
from include.streams.contracts.violations import ContractViolation, Reason, has_duplicate_keys
from include.streams.formats import RegistryUnavailable, SchemaRefused
from include.streams.formats.framing import SCHEMA_HEADERS

# Returns the new value, or None if the repair does not apply to the message. May raise ContractViolation if the repair
# applies, but the message has another fault.
Repair = Callable[[bytes], bytes | None]


class Repaired(NamedTuple):
    """A valid value, its event, and the names of the applied repairs (empty if the value was valid before).

    `headers` are those that replace the message's own headers about its schema; None to keep the message's headers.
    """

    value: bytes
    event: Contract
    repairs: tuple[str, ...]
    headers: list[tuple[str, bytes]] | None = None

    def headers_of(self, headers: Headers) -> list[tuple[str, bytes | None]]:
        """The headers of the repaired message.

        Args:
            headers: The headers of the message as it was.
        """
        if self.headers is None:
            return list(headers)
        return [*(header for header in headers if header[0] not in SCHEMA_HEADERS), *self.headers]


class Repairs:
    """The repairs of a project, by topic, in the order in which they were registered."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, Repair]] = {}

    def repair(self, topic: Topic) -> Callable[[Repair], Repair]:
        """Decorator: register a function as a repair of the topic's messages, under the function's name.

        Args:
            topic: The topic of the messages.

        Returns:
            The decorator. The function gets the message's value, and returns the new value, or None if the repair does
            not apply to the message.
        """

        def register(function: Repair) -> Repair:
            self._register(topic, function.__name__, function)
            return function

        return register

    def renamed(self, topic: Topic, fields: Mapping[str, str]) -> None:
        """Register a repair that renames top-level fields.

        A message that has both names of a field is not repaired: the correct value cannot be known.

        Args:
            topic: The topic of the messages.
            fields: {wrong name: correct name}.

        Raises:
            ValueError: The contract has no field with the correct name. For a foreign contract: it picks no field from
                a member of this name.
        """
        if unknown := set(fields.values()) - _members(topic):
            raise ValueError(f"repair of topic {topic.name!r}: its contract has no field {min(unknown)!r}")

        def rename(value: bytes) -> bytes | None:
            document = to_document(value) or {}
            wrong = fields.keys() & document.keys()
            if not wrong or any(fields[name] in document for name in wrong):
                return None
            return to_value({fields.get(name, name): content for name, content in document.items()})

        self._register(topic, "renamed " + ", ".join(f"{wrong} to {right}" for wrong, right in fields.items()), rename)

    def of(self, topic: Topic) -> Mapping[str, Repair]:
        """The topic's repairs.

        Args:
            topic: The topic.

        Returns:
            {name: repair}, in the order of their registration.
        """
        return self._of.get(topic.name, {})

    def apply(self, topic: Topic, value: bytes | None, headers: Headers = ()) -> Repaired:
        """Apply the topic's repairs, one after the other, until the value is valid.

        No value may cause other exceptions than those below, because they would stop a replay at this message.

        Args:
            topic: The topic of the message.
            value: The message's value. A valid value is returned without repairs.
            headers: The message's headers.

        Returns:
            The valid value with its event and the applied repairs.

        Raises:
            NotWanted: No contract of the topic's union takes the message's type.
            ContractViolation: The value still breaks the contract after all repairs, or a repair failed.
            RegistryUnavailable: The schema registry, which the topic's format needs, gave no definite answer.
            SchemaRefused: The repaired value needs a schema that the registry does not have.
        """
        try:
            return Repaired(value or b"", topic.parse(value, headers), ())
        except ContractViolation as error:
            if value is None:
                raise
            violation = error
        text = _text_of(topic, value, headers)
        if text is None:
            raise violation
        applied: tuple[str, ...] = ()
        for name, repair in self.of(topic).items():
            try:
                changed = repair(text)
                if changed is not None and changed != text:
                    text, applied = changed, (*applied, name)
                    event = topic.parse_text(text, headers)
                    if topic.codec is None:
                        return Repaired(text, event, applied)
                    encoded, own_headers = topic.encode(text, like=(value, headers))
                    return Repaired(encoded, event, applied, own_headers)
            except ContractViolation as error:
                violation = error
            except (NotWanted, RegistryUnavailable, SchemaRefused):
                raise
            except Exception as error:
                detail = f"the repair {name!r} raised {type(error).__name__}"
                raise ContractViolation(Reason.rejected, detail) from error
        raise violation

    def _register(self, topic: Topic, name: str, repair: Repair) -> None:
        repairs = self._of.setdefault(topic.name, {})
        if name in repairs:
            raise ValueError(f"topic {topic.name!r} has a repair {name!r} already")
        repairs[name] = repair


def _text_of(topic: Topic, value: bytes, headers: Headers) -> bytes | None:
    """The text that repairs read; None if the value has none.

    A producer that sent plain JSON to a topic with schemas can be repaired: its values are such texts.
    """
    try:
        return topic.text_of(value, headers)
    except ContractViolation as error:
        return value if error.reason is Reason.no_schema_id else None


def _members(topic: Topic) -> set[str]:
    """The names of the top-level members that the topic's contracts read."""
    names: set[str] = set()
    for contract in topic.contracts:
        if issubclass(contract, ForeignContract):
            names |= {source.names[0] for source in sources_of(contract).values() if isinstance(source, At)}
        else:
            names |= contract.model_fields.keys()
    return names


def to_document(value: bytes) -> dict[str, Any] | None:
    """The JSON object in a message's value.

    Args:
        value: The message's value.

    Returns:
        The object; None if the value is no JSON object, or if a name occurs twice in any object of it: two readers
        could read such an object differently.
    """
    try:
        document = json.loads(value.decode())
        if isinstance(document, dict) and not has_duplicate_keys(value):
            return document
    except (ValueError, RecursionError):
        pass
    return None


def to_value(document: Mapping[str, Any]) -> bytes:
    """Encode a JSON object as a message's value: the same bytes for the same object.

    Args:
        document: The object.
    """
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
