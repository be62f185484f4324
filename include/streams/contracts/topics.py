"""Topics with their contracts, and the registry of all topics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, get_args, get_origin

from pydantic import AwareDatetime, ValidationError

from include.streams.contracts.foreign import (
    ContractUnion,
    ForeignContract,
    FromHeader,
    Headers,
    Payload,
    check_foreign,
    pick,
    sources_of,
)
from include.streams.contracts.model import Contract
from include.streams.contracts.objects import PlainObjects
from include.streams.contracts.violations import (
    ContractViolation,
    Reason,
    duplicate_keys,
    explain,
    from_errors,
    has_duplicate_keys,
)
from include.streams.formats import JSON, Format, NotDecodable, NotEncodable, RegistryFormat

if TYPE_CHECKING:
    from include.streams.formats.codec import Codec

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
# The headers with reason and coordinates that a dead-letter record adds to the original record.
DEAD_LETTER_OVERHEAD_BYTES = 64 * 1024
# Long enough to find the cause, deploy a fix and replay. Not forever, because dead letters hold personal data.
DEAD_LETTER_RETENTION = timedelta(days=365)


class OutgoingMessage(NamedTuple):
    """An encoded event: key and value, and the headers that its format needs."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


@dataclass(frozen=True)
class Topic:
    """A Kafka topic and its contract.

    Attributes:
        name: The topic's name in Kafka. A version of a contract that is not compatible with the last version gets its
            own topic, named `<name>.v<version>`, so that both topics are used until the old one is drained.
        contract: The model of the messages. If somebody else defines the messages, a `ForeignContract`, or a
            `ContractUnion` of several of them.
        key: The field that is the Kafka key. Messages with the same key keep their order. None if no picked field of a
            foreign contract is the key.
        partitions: The number of partitions with which the topic is created if it does not exist.
        retention: How long the broker keeps a message, by its timestamp; None to keep it forever.
        max_bytes: The largest value that the contract allows, in bytes.
        compacted: The broker may delete a message when a later one has the same key.
        landed: True: the project's sink connector writes this topic to a landing table on object storage. A
            `PlainObjects`: the sink of another product writes it to objects.
        event_time: The field with the time of the event in UTC; the clean table of a landed topic is partitioned by it.
        description: A text for the JSON Schema.
        format: The format of the values: `JSON`, or `Avro(...)`, `Protobuf(...)` or `JsonSchema(...)` for a topic whose
            schemas are in a schema registry. The contract judges the decoded value, whatever the format.

    Raises:
        ValueError: The topic cannot work as declared; the text names the attribute and the reason.
    """

    name: str
    contract: type[Contract] | ContractUnion
    key: str | None
    partitions: int
    retention: timedelta | None
    max_bytes: int = 64 * 1024
    compacted: bool = False
    landed: bool | PlainObjects = False
    event_time: str | None = None
    description: str = ""
    format: Format = JSON

    def __post_init__(self) -> None:
        if not _LEGAL_NAME.fullmatch(self.name) or self.name in (".", ".."):
            self._refuse("name", "not legal in Kafka: use letters, digits, '.', '_' and '-'")
        if len(self.dead_letter_name) > MAX_NAME_LENGTH:
            self._refuse("name", f"longer than {MAX_NAME_LENGTH} characters with {DEAD_LETTER_SUFFIX!r}")
        if self.name.endswith(DEAD_LETTER_SUFFIX):
            self._refuse("name", f"names that end with {DEAD_LETTER_SUFFIX!r} belong to dead-letter topics")
        for contract in self.contracts:
            if not isinstance(contract, type) or not issubclass(contract, Contract):
                self._refuse("contract", f"{contract!r} does not inherit from Contract")
            if contract.event_id is Contract.event_id:
                self._refuse("contract", f"{contract.__name__} does not define the property event_id")
            self._check_config(contract)
            if issubclass(contract, ForeignContract):
                self._check_foreign(contract)
            else:
                self._check_version(contract)
            self._check_key(contract)
            self._check_event_time(contract)
        self._check_headers()
        self._check_landed()
        self._check_format()
        if self.partitions < 1:
            self._refuse("partitions", f"{self.partitions}; at least 1")
        if self.retention is not None and self.retention < timedelta(minutes=1):
            self._refuse("retention", f"{self.retention}; at least a minute, or None to keep messages forever")
        if not 2 <= self.max_bytes <= 64 * 1024 * 1024:
            self._refuse("max_bytes", f"{self.max_bytes}; 2 to 67108864")

    @property
    def dead_letter_name(self) -> str:
        """The name of the topic that gets the messages that cannot be handled."""
        return f"{self.name}{DEAD_LETTER_SUFFIX}"

    @cached_property
    def contracts(self) -> tuple[type[Contract], ...]:
        """The contracts of the messages: one, or those of the union."""
        return tuple(self.contract.contracts.values()) if isinstance(self.contract, ContractUnion) else (self.contract,)

    @property
    def contract_name(self) -> str:
        """The contract's name; for a union, whose contracts have names of their own, the topic's name."""
        return self.name if isinstance(self.contract, ContractUnion) else self.contract.contract_name

    @cached_property
    def is_foreign(self) -> bool:
        """Whether somebody else defines the messages."""
        return issubclass(self.contracts[0], ForeignContract)

    @cached_property
    def headers(self) -> tuple[str, ...]:
        """The names of the headers from which the contracts pick."""
        foreign = [contract for contract in self.contracts if issubclass(contract, ForeignContract)]
        sources = [source for contract in foreign for source in sources_of(contract).values()]
        if isinstance(self.contract, ContractUnion):
            sources.insert(0, self.contract.by)
        return tuple(dict.fromkeys(source.name for source in sources if isinstance(source, FromHeader)))

    @property
    def version(self) -> int:
        """The version that the contract's messages state."""
        if isinstance(self.contract, ContractUnion):
            return self.contract.version
        if issubclass(self.contract, ForeignContract):
            return self.contract.contract_version
        return get_args(self.contract.model_fields["version"].annotation)[0]

    def parse(self, value: bytes | None, headers: Headers = ()) -> Contract:
        """The event in a message.

        No message may cause another exception than these: it would stop the consumer at this message.

        Args:
            value: The message's value; None for a tombstone.
            headers: The message's headers, of which foreign contracts may pick fields.

        Returns:
            The event.

        Raises:
            ContractViolation: The message breaks the contract.
            NotWanted: No contract of the topic's union takes messages of this type.
            RegistryUnavailable: The schema registry, which the topic's format needs, gave no definite answer. This says
                nothing about the message: try it again later.
        """
        if value is not None and self.codec is not None:
            text = self.text_of(value, headers)
            return self.parse_text(text, headers, max_bytes=len(text))
        return self.parse_text(value, headers)

    def text_of(self, value: bytes, headers: Headers = ()) -> bytes:
        """The value of a message as a JSON text, which contracts, repairs and people read whatever the format is.

        Args:
            value: The message's value.
            headers: The message's headers.

        Returns:
            The text; for a topic in JSON the value itself.

        Raises:
            ContractViolation: The value cannot be decoded.
            RegistryUnavailable: The schema registry gave no definite answer.
        """
        if self.codec is None:
            return value
        if len(value) > self.max_bytes:
            raise ContractViolation(Reason.too_large, f"{len(value)} bytes, at most {self.max_bytes}")
        try:
            return self.codec.decode(value, headers)
        except NotDecodable as error:
            raise ContractViolation(Reason(error.reason), error.detail) from None

    def parse_text(self, text: bytes | None, headers: Headers = (), *, max_bytes: int | None = None) -> Contract:
        """The event in the JSON text of a message, whatever the topic's format is.

        Args:
            text: The text; None for a tombstone.
            headers: The message's headers.
            max_bytes: The largest text that is allowed; by default the topic's own limit.

        Returns:
            The event.

        Raises:
            ContractViolation: The text breaks the contract.
            NotWanted: No contract of the topic's union takes messages of this type.
        """
        limit = self.max_bytes if max_bytes is None else max_bytes
        if self.is_foreign:
            return self._parse_foreign(text, headers, limit)
        if text is None:
            raise ContractViolation(Reason.tombstone, "the message has no value")
        if len(text) > limit:
            raise ContractViolation(Reason.too_large, f"{len(text)} bytes, at most {limit}")
        try:
            event = _validated(self.contracts[0], text)
        except ValidationError as error:
            raise explain(text, self.version, error) from None
        # If the text has as many names as fields were set, no name occurs twice. If it has more names, one may occur
        # twice; or the text has nested objects, or a value that looks like a name.
        if len(_MEMBER_NAME_END.findall(text)) != len(event.model_fields_set) and has_duplicate_keys(text):
            raise duplicate_keys()
        return event

    def _parse_foreign(self, value: bytes | None, headers: Headers, max_bytes: int) -> Contract:
        payload = Payload(value, max_bytes)
        contract: Any = (
            self.contract.of(payload, headers) if isinstance(self.contract, ContractUnion) else self.contract
        )
        try:
            return _validated(contract, pick(contract, payload, headers))
        except ValidationError as error:
            raise from_errors(error, sources_of(contract)) from None

    def serialize(self, event: Contract) -> tuple[bytes, bytes]:
        """Encode an event as a message: the same bytes for the same event.

        Args:
            event: An event of this topic's contract.

        Returns:
            The message's key and value.

        Raises:
            TypeError: The event belongs to another contract, somebody else defines the messages, or the format needs
                headers: call `outgoing`.
            ContractViolation: `parse` would reject the bytes, because the event was changed with `model_copy` or is too
                large. A message that every consumer would reject must not be sent.
            SchemaRefused: The schema registry has no schema for the event, and may not get it from here.
            RegistryUnavailable: The schema registry gave no definite answer.
        """
        key, value, headers = self.outgoing(event)
        if headers:
            raise TypeError(f"topic {self.name} has the id of its schema in a header: use `outgoing`, not `serialize`")
        return key, value

    def outgoing(self, event: Contract) -> OutgoingMessage:
        """Encode an event as a message with the headers that the topic's format needs.

        Args:
            event: An event of this topic's contract.

        Returns:
            Key, value and headers.

        Raises:
            TypeError: The event belongs to another contract, or somebody else defines the messages.
            ContractViolation: `parse` would reject the message.
            SchemaRefused: The schema registry has no schema for the event, and may not get it from here.
            RegistryUnavailable: The schema registry gave no definite answer.
        """
        if self.is_foreign or self.key is None:
            raise TypeError(
                f"somebody else defines the messages of topic {self.name}, and its contract knows only a part of each: "
                "send the bytes of a whole message, or declare a topic of your own"
            )
        if type(event) is not self.contract:
            raise TypeError(f"topic {self.name} holds {self.contract_name}, not {type(event).__name__}")
        text = event.model_dump_json().encode()
        self.parse_text(text, max_bytes=None if self.codec is None else len(text))
        value, headers = self.encode(text)
        return OutgoingMessage(str(getattr(event, self.key)).encode(), value, headers)

    def encode(
        self, text: bytes, *, like: tuple[bytes, Headers] | None = None
    ) -> tuple[bytes, list[tuple[str, bytes]]]:
        """Encode the JSON text of a message in the topic's format. The text is not checked against the contract.

        Args:
            text: The text.
            like: Value and headers of a message whose schema is used, if it can be. By default the topic's own schema,
                or, if it has none, the latest schema of its subject.

        Returns:
            The value, and the headers that belong to it. For a topic in JSON, the text and no headers.

        Raises:
            ContractViolation: The text does not fit the schema, or the value is too large.
            SchemaRefused: The schema registry has no schema, and may not get it from here.
            RegistryUnavailable: The schema registry gave no definite answer.
        """
        if self.codec is None:
            return text, []
        try:
            value, headers = self.codec.encode_like(json.loads(text), like)
        except NotEncodable as error:
            raise ContractViolation(Reason.rejected, str(error)) from None
        except (ValueError, RecursionError) as error:
            raise ContractViolation(Reason.not_json, type(error).__name__) from None
        if len(value) > self.max_bytes:
            raise ContractViolation(Reason.too_large, f"{len(value)} bytes, at most {self.max_bytes}")
        return value, headers

    @property
    def codec(self) -> Codec | None:
        """Decodes and encodes the values; None for a topic in JSON. It is loaded at its first use."""
        if not isinstance(self.format, RegistryFormat):
            return None
        from include.streams.formats.codecs import codec_of

        return codec_of(self.name, self.format, None if self.is_foreign else self.contracts[0])

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

    def _check_config(self, contract: type[Contract]) -> None:
        for setting, required in (("strict", True), ("extra", "forbid"), ("frozen", True)):
            value = contract.model_config.get(setting)
            if value != required:
                name = contract.__name__
                self._refuse("contract", f"{name} sets {setting}={value!r}; it must stay {required!r}")

    def _check_foreign(self, contract: type[ForeignContract]) -> None:
        try:
            check_foreign(contract)
        except ValueError as error:
            self._refuse("contract", str(error))

    def _check_headers(self) -> None:
        columns = {HEADERS_LANDED: HEADERS_LANDED}
        for name in self.headers if self.landed else ():
            if re.search(r"[ ,]", name):
                self._refuse("contract", f"the sink cannot land a header with a space or a comma in its name: {name!r}")
            if (other := columns.setdefault(header_column(name), name)) != name:
                self._refuse("contract", f"headers {other!r} and {name!r} would share a column of the landing table")

    def _check_landed(self) -> None:
        if isinstance(self.landed, PlainObjects) and self.landed.records == "values" and self.compacted:
            self._refuse(
                "landed",
                "the broker deletes messages of a compacted topic, so the number of a line in an object says nothing "
                "about its offset: let the sink write envelopes",
            )

    def _check_format(self) -> None:
        if not isinstance(self.format, RegistryFormat):
            return
        if self.landed:
            self._refuse("format", "only topics in JSON can land in tables")
        names_record = self.format.subject != "topic"
        if names_record and self.is_foreign and self.format.schema is None and not self.format.records:
            self._refuse("format", "somebody else defines the messages: name their `records`")

    def _check_version(self, contract: type[Contract]) -> None:
        field = contract.model_fields.get("version")
        values: tuple = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
        is_declared = len(values) == 1 and type(values[0]) is int and values[0] >= 1
        if not is_declared or not field or not field.is_required():
            name = contract.__name__
            self._refuse("contract", f"{name} needs the field `version: Literal[n]` without a default")
        suffix = _VERSION_IN_NAME.search(self.name)
        if suffix and int(suffix[1]) != self.version:
            self._refuse("name", f"ends with {suffix[0]!r}, but the contract has version {self.version}")

    def _check_key(self, contract: type[Contract]) -> None:
        if self.key is None:
            if not self.is_foreign:
                self._refuse("key", "name the field that is the Kafka key; only a foreign contract may have no key")
            return
        field = contract.model_fields.get(self.key)
        if field is None:
            self._refuse("key", f"{contract.__name__} has no field {self.key!r}")
        kind = field.annotation
        if not field.is_required() or kind not in (str, int):  # an enumeration has too few values to distribute
            self._refuse("key", f"field {self.key!r} must be a required str or int, not {kind}")

    def _check_event_time(self, contract: type[Contract]) -> None:
        if self.event_time is not None:
            field = contract.model_fields.get(self.event_time)
            if field is None or not field.is_required() or field.annotation is not AwareDatetime:
                self._refuse("event_time", f"{self.event_time!r} is not a required time of {contract.__name__}")

    def _refuse(self, what: str, why: str) -> NoReturn:
        raise ValueError(f"topic {self.name!r}: {what}: {why}")


def landed_name(name: str) -> str:
    """`orders.placed` -> `orders_placed`: the name of a landed topic in its tables, connector and groups.

    Args:
        name: The topic's name in Kafka.
    """
    return name.replace(".", "_").replace("-", "_")


# The column of a landing table with the names of the headers that the sink has landed with a row, joined by commas.
HEADERS_LANDED = "headers_landed"


def header_column(name: str) -> str:
    """`X-GitHub-Event` -> `header_x_github_event`: the column of a header in a landing table.

    Args:
        name: The header's name.
    """
    return f"header_{re.sub(r'[^a-z0-9]+', '_', name.lower())}"


class Registry:
    """A set of topics: `for topic in registry`, `registry["orders"]`.

    Args:
        topics: The topics.

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
                # The second name is the group of the sink's coordinator, which no other sink may use.
                for used_name in (landed_name(topic.name), f"{landed_name(topic.name)}_coord"):
                    if (other := landed.setdefault(used_name, topic.name)) != topic.name:
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


def _validated(contract: type[Contract], text: bytes) -> Contract:
    """The event in a JSON text; raises ValidationError or, for a fault in the contract's own code, ContractViolation.

    Until such a fault is fixed, the message is a dead letter.
    """
    try:
        return contract.model_validate_json(text)
    except ValidationError:
        raise
    except BaseException as error:
        if not _is_from_validation(error):
            raise
        kind = type(error).__name__
        raise ContractViolation(Reason.rejected, f"the contract's own code raised {kind}") from error


def _is_from_validation(error: BaseException) -> bool:
    """Whether the validation raised the error; False for a request to end this process (such as KeyboardInterrupt).

    A panic in pydantic's core is not an `Exception`. Without this check, it would stop the whole claim at this message,
    at every retry.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _milliseconds(duration: timedelta | None) -> int:
    return -1 if duration is None else duration // timedelta(milliseconds=1)
