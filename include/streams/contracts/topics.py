"""Topics with their contracts, and the registry of all topics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NoReturn, get_args, get_origin

from pydantic import AwareDatetime, ValidationError

from include.streams.contracts.model import Contract
from include.streams.contracts.violations import (
    ContractViolation,
    Reason,
    duplicate_keys,
    explain,
    has_duplicate_keys,
)

_LEGAL_NAME = re.compile(r"[a-zA-Z0-9._-]+")
_VERSION_IN_NAME = re.compile(r"\.v([0-9]+)$")
_MEMBER_NAME_END = re.compile(rb'"[ \t\n\r]*:')
MAX_NAME_LENGTH = 249  # Kafka's limit
DEAD_LETTER_SUFFIX = ".dlq"

# Kafka's default limit of a record batch. The broker accepts more than the contract allows. So a message that is too
# large for the contract becomes a dead letter that people can examine, not an error at a remote producer.
BROKER_MAX_BYTES = 1_048_588
# Key, headers and framing that a record batch adds to a value.
BATCH_OVERHEAD_BYTES = 16 * 1024
# The headers with reason and coordinates that a dead letter record adds to the original record.
DEAD_LETTER_OVERHEAD_BYTES = 64 * 1024
# Long enough to find the cause, deploy a fix and replay. Not forever, because dead letters hold personal data.
DEAD_LETTER_RETENTION = timedelta(days=365)


@dataclass(frozen=True)
class Topic:
    """A Kafka topic and its contract.

    Attributes:
        name: The topic's name in Kafka. A version of a contract that is not compatible with the last version gets its
            own topic, named `<name>.v<version>`, so that both topics are used until the old one is drained.
        contract: The model of the messages.
        key: The field that is the Kafka key. Messages with the same key keep their order.
        partitions: The number of partitions.
        retention: How long the broker keeps a message, by its timestamp; None to keep it forever.
        max_bytes: The largest value that the contract allows, in bytes.
        compacted: The broker may delete a message when a later one has the same key.
        landed: The sink connector writes this topic to a landing table on object storage.
        event_time: The field with the time of the event in UTC; the clean table of a landed topic is partitioned by it.
        description: A text for the JSON Schema.

    Raises:
        ValueError: The topic cannot work as declared; the text names the attribute and the reason.
    """

    name: str
    contract: type[Contract]
    key: str
    partitions: int
    retention: timedelta | None
    max_bytes: int = 64 * 1024
    compacted: bool = False
    landed: bool = False
    event_time: str | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if not _LEGAL_NAME.fullmatch(self.name) or self.name in (".", ".."):
            self._refuse("name", "not legal in Kafka: use letters, digits, '.', '_' and '-'")
        if len(self.dead_letter_name) > MAX_NAME_LENGTH:
            self._refuse("name", f"longer than {MAX_NAME_LENGTH} characters with {DEAD_LETTER_SUFFIX!r}")
        if self.name.endswith(DEAD_LETTER_SUFFIX):
            self._refuse("name", f"names that end with {DEAD_LETTER_SUFFIX!r} belong to dead-letter topics")
        if not issubclass(self.contract, Contract):
            self._refuse("contract", f"{self.contract!r} does not inherit from Contract")
        if self.contract.event_id is Contract.event_id:
            self._refuse("contract", f"{self.contract.__name__} does not define the property event_id")
        self._check_config()
        self._check_version()
        self._check_key()
        self._check_event_time()
        if self.partitions < 1:
            self._refuse("partitions", f"{self.partitions}; at least 1")
        if self.retention is not None and self.retention < timedelta(minutes=1):
            self._refuse("retention", f"{self.retention}; at least a minute, or None for ever")
        if not 2 <= self.max_bytes <= 64 * 1024 * 1024:
            self._refuse("max_bytes", f"{self.max_bytes}; 2 to 67108864")

    @property
    def dead_letter_name(self) -> str:
        """The name of the topic that gets the messages that cannot be handled."""
        return f"{self.name}{DEAD_LETTER_SUFFIX}"

    @property
    def version(self) -> int:
        """The version that the contract's messages state."""
        return get_args(self.contract.model_fields["version"].annotation)[0]

    def parse(self, value: bytes | None) -> Contract:
        """The event in a message's value.

        No bytes may cause another exception than ContractViolation: it would stop the consumer at this message.

        Args:
            value: The message's value; None for a tombstone.

        Returns:
            The event.

        Raises:
            ContractViolation: The value breaks the contract.
        """
        if value is None:
            raise ContractViolation(Reason.tombstone, "the message has no value")
        if len(value) > self.max_bytes:
            raise ContractViolation(Reason.too_large, f"{len(value)} bytes, at most {self.max_bytes}")
        try:
            event = self.contract.model_validate_json(value)
        except ValidationError as error:
            raise explain(value, self.version, error) from None
        except BaseException as error:
            if not _is_of_the_contract(error):
                raise
            # A fault in a validator of the contract: the message becomes a dead letter until the fault is fixed.
            kind = type(error).__name__
            raise ContractViolation(Reason.rejected, f"the contract's own code raised {kind}") from error
        # If the text has as many names as fields were set, no name occurs twice. If it has more, it may also have
        # nested objects, or text that looks like a name.
        if len(_MEMBER_NAME_END.findall(value)) != len(event.model_fields_set) and has_duplicate_keys(value):
            raise duplicate_keys()
        return event

    def serialize(self, event: Contract) -> tuple[bytes, bytes]:
        """Encode an event as a message: the same bytes for the same event.

        Args:
            event: An event of this topic's contract.

        Returns:
            The message's key and value.

        Raises:
            TypeError: The event belongs to another contract.
            ContractViolation: `parse` would reject the bytes, because the event was changed with `model_copy` or is too
                large. A message that every consumer would reject must not be sent.
        """
        if type(event) is not self.contract:
            raise TypeError(f"topic {self.name} holds {self.contract.__name__}, not {type(event).__name__}")
        value = event.model_dump_json().encode()
        self.parse(value)
        return str(getattr(event, self.key)).encode(), value

    def kafka_config(self) -> dict[str, str]:
        """The topic's settings in Kafka."""
        policies = ["compact"] if self.compacted else []
        if self.retention is not None or not policies:
            policies.append("delete")
        return {
            "cleanup.policy": ",".join(policies),
            "retention.ms": str(_milliseconds(self.retention)),
            "max.message.bytes": str(self._record_limit_bytes),
        }

    def dead_letter_config(self) -> dict[str, str]:
        """The dead-letter topic's settings in Kafka: a larger maximum message size, and a long retention."""
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(_milliseconds(DEAD_LETTER_RETENTION)),
            "max.message.bytes": str(self._record_limit_bytes + DEAD_LETTER_OVERHEAD_BYTES),
            # Retention uses record timestamps. With the original's timestamp, an old message would be deleted on
            # arrival.
            "message.timestamp.type": "LogAppendTime",
        }

    @property
    def _record_limit_bytes(self) -> int:
        return max(BROKER_MAX_BYTES, self.max_bytes + BATCH_OVERHEAD_BYTES)

    def _check_config(self) -> None:
        for setting, needed in (("strict", True), ("extra", "forbid"), ("frozen", True)):
            found = self.contract.model_config.get(setting)
            if found != needed:
                name = self.contract.__name__
                self._refuse("contract", f"{name} sets {setting}={found!r}; it must stay {needed!r}")

    def _check_version(self) -> None:
        field = self.contract.model_fields.get("version")
        values: tuple = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
        declared = len(values) == 1 and type(values[0]) is int and values[0] >= 1
        if not declared or not field or not field.is_required():
            name = self.contract.__name__
            self._refuse("contract", f"{name} needs the field `version: Literal[n]` without a default")
        named = _VERSION_IN_NAME.search(self.name)
        if named and int(named[1]) != self.version:
            self._refuse("name", f"ends with {named[0]!r}, but the contract has version {self.version}")

    def _check_key(self) -> None:
        field = self.contract.model_fields.get(self.key)
        if field is None:
            self._refuse("key", f"{self.contract.__name__} has no field {self.key!r}")
        kind = field.annotation
        if not field.is_required() or kind not in (str, int):  # an enumeration has too few values to distribute
            self._refuse("key", f"field {self.key!r} must be a required str or int, not {kind}")

    def _check_event_time(self) -> None:
        if self.event_time is not None:
            field = self.contract.model_fields.get(self.event_time)
            if field is None or not field.is_required() or field.annotation is not AwareDatetime:
                self._refuse("event_time", f"{self.event_time!r} is not a required time of {self.contract.__name__}")

    def _refuse(self, what: str, why: str) -> NoReturn:
        raise ValueError(f"topic {self.name!r}: {what}: {why}")


def landed_name(name: str) -> str:
    """`orders.placed` -> `orders_placed`: the name of a landed topic in its tables, connector and groups."""
    return name.replace(".", "_").replace("-", "_")


class Registry:
    """All topics of the project: `for topic in registry`, `registry["orders"]`.

    Raises:
        ValueError: The names of two topics collide in Kafka, or in the tables, connectors or groups of landed topics.
    """

    def __init__(self, *topics: Topic):
        self._topics: dict[str, Topic] = {}
        landed: dict[str, str] = {}
        metric_names: dict[str, str] = {}
        for topic in topics:
            for name in (topic.name, topic.dead_letter_name):
                # Kafka's metrics do not distinguish "." from "_", so the broker refuses the second of two such names.
                metric_name = name.replace(".", "_")
                if metric_name in metric_names:
                    raise ValueError(f"topic {name!r}: its name collides with {metric_names[metric_name]!r}")
                metric_names[metric_name] = name
            if topic.landed:
                # The second name is the group of a sink's coordinator, which another sink must not use.
                for taken in (landed_name(topic.name), f"{landed_name(topic.name)}_coord"):
                    if (other := landed.setdefault(taken, topic.name)) != topic.name:
                        raise ValueError(
                            f"landed topics {other!r} and {topic.name!r} would share a table, a connector or a "
                            "consumer group, and each would lose records of the other: rename one of them"
                        )
            self._topics[topic.name] = topic

    def __iter__(self) -> Iterator[Topic]:
        return iter(self._topics.values())

    def __len__(self) -> int:
        return len(self._topics)

    def __contains__(self, name: object) -> bool:
        return name in self._topics

    def __getitem__(self, name: str) -> Topic:
        try:
            return self._topics[name]
        except KeyError:
            known = ", ".join(sorted(self._topics)) or "none"
            raise KeyError(f"no topic {name!r} in the registry; it has: {known}") from None


def _is_of_the_contract(error: BaseException) -> bool:
    """Whether the validation raised the error; False for a request to end this process (such as KeyboardInterrupt).

    A panic in pydantic's core is not an `Exception`. Without this check, it would stop the whole claim at this message,
    at every retry.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _milliseconds(duration: timedelta | None) -> int:
    return -1 if duration is None else duration // timedelta(milliseconds=1)
