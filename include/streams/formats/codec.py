"""What all registry formats share: the schema of a message, its subjects, and the topic's own schema."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from include.streams.formats.declared import RegistryFormat
from include.streams.formats.errors import NotDecodable, NotDerivable, NotEncodable, SchemaRefused
from include.streams.formats.framing import Headers, SchemaRef, join, split
from include.streams.formats.registry import Registered, SchemaRegistry, SchemaText, registry

# How long an unknown or foreign id stays so. A registry of several nodes may learn an id later than its consumers.
UNKNOWN_SECONDS = 60.0
ASK_AGAIN_SECONDS = 1.0


class Writer(Protocol):
    """Reads values that were written with one schema."""

    def decode(self, payload: bytes, indexes: tuple[int, ...]) -> bytes:
        """The JSON text of a value; raises NotDecodable."""
        ...

    def encode(self, document: Any) -> tuple[bytes, tuple[int, ...]]:
        """The bytes of a JSON document, and the numbers of its type; raises NotEncodable."""
        ...

    def records(self) -> tuple[str, ...]:
        """The full names of the records that this schema can describe."""
        ...


class Encoded(NamedTuple):
    """An encoded value, and the headers that belong to it."""

    value: bytes
    headers: list[tuple[str, bytes]]


class Codec(ABC):
    """Decodes and encodes the values of one topic.

    Args:
        topic: The topic's name.
        declared: The topic's format.
        contract: The pydantic model from which the schema is derived; None if somebody else defines the messages.
    """

    has_indexes = False

    def __init__(self, topic: str, declared: RegistryFormat, contract: Any) -> None:
        self.topic = topic
        self.declared = declared
        self._contract = contract
        self._writers: dict[tuple[int | None, str | None], Writer] = {}
        # {id: (until when, why its messages cannot be decoded)}
        self._refused: dict[tuple[int | None, str | None], tuple[float, NotDecodable]] = {}
        self._own_id: Registered | None = None

    @abstractmethod
    def _writer(self, schema: SchemaText) -> Writer:
        """The reader of values with a schema; raises NotDecodable if the schema cannot be used."""

    @abstractmethod
    def derive(self, contract: Any) -> str:
        """The schema of a contract; raises NotDerivable."""

    @property
    def registry(self) -> SchemaRegistry:
        """The registry; raises RegistryUnavailable."""
        return registry(self.declared.conn_id)

    @cached_property
    def own(self) -> SchemaText | None:
        """The topic's own schema: from its file, or derived from its contract. None if it has none.

        Raises:
            NotDerivable: The contract has a field that the format cannot express.
        """
        if self.declared.schema is not None:
            return SchemaText(self.declared.kind, self.declared.schema.read_text())
        return None if self._contract is None else SchemaText(self.declared.kind, self.derive(self._contract))

    @cached_property
    def own_writer(self) -> Writer | None:
        """The reader of values with the topic's own schema; raises NotDerivable if the schema cannot be used."""
        if self.own is None:
            return None
        try:
            return self._writer(self.own)
        except NotDecodable as error:
            raise NotDerivable(f"topic {self.topic}: its own schema cannot be used: {error.detail}") from None

    @cached_property
    def records(self) -> tuple[str, ...]:
        """The full names of the records that the topic may hold; empty for any."""
        if self.declared.records or self.own_writer is None:
            return self.declared.records
        return self.own_writer.records()[:1]

    def subject(self, record: str = "") -> str:
        """The subject of a schema: by the topic, the record's full name, or both."""
        naming = self.declared.subject
        return {
            "topic": f"{self.topic}-value", "record": record, "topic_record": f"{self.topic}-{record}"
        }[naming]  # fmt: skip

    @property
    def own_subject(self) -> str:
        """The subject of the topic's own schema, or of its first record."""
        return self.subject(self.records[0] if self.records else "")

    def decode(self, value: bytes, headers: Headers) -> bytes:
        """The value of a message as a JSON text.

        Args:
            value: The bytes of the value.
            headers: The message's headers.

        Raises:
            NotDecodable: The message becomes a dead letter.
            RegistryUnavailable: The registry gave no definite answer; the message waits.
        """
        ref, payload = split(value, headers, has_indexes=self.has_indexes)
        try:
            return self.writer_of(ref).decode(payload, ref.indexes)
        except NotDecodable as error:
            raise NotDecodable(error.reason, f"{ref}: {error.detail}") from None

    def writer_of(self, ref: SchemaRef) -> Writer:
        """The reader of values with the schema of an id, which must be one of the topic's.

        Args:
            ref: The id.

        Raises:
            NotDecodable: The registry does not know the id, or it is not the topic's.
            RegistryUnavailable: The registry gave no definite answer.
        """
        key = (ref.id, ref.guid)
        if (known := self._writers.get(key)) is not None:
            return known
        until, refusal = self._refused.get(key, (0.0, None))
        if refusal is not None and time.monotonic() < until:
            raise refusal
        try:
            writer = self._new_writer(ref)
        except NotDecodable as error:
            self._refused[key] = (time.monotonic() + UNKNOWN_SECONDS, error)
            raise
        self._writers[key] = writer
        return writer

    def _new_writer(self, ref: SchemaRef) -> Writer:
        schema = self._fetch(ref)
        if schema is None:
            time.sleep(ASK_AGAIN_SECONDS)
            schema = self._fetch(ref)
        if schema is None:
            raise NotDecodable("unknown_schema", "the registry does not know it")
        if schema.kind != self.declared.kind:
            raise NotDecodable("foreign_schema", f"its type is {schema.kind}, the topic's is {self.declared.kind}")
        writer = self._writer(schema)
        self._check_subject(ref, schema, writer)
        return writer

    def _fetch(self, ref: SchemaRef) -> SchemaText | None:
        if ref.id is not None:
            return self.registry.schema_by_id(ref.id)
        return self.registry.schema_by_guid(str(ref.guid))

    def _check_subject(self, ref: SchemaRef, schema: SchemaText, writer: Writer) -> None:
        """Raise NotDecodable unless the schema is registered for this topic."""
        names = writer.records()
        if self.declared.subject != "topic" and self.records:
            names = tuple(name for name in names if name in self.records)
        wanted = {self.subject(name) for name in names} if self.declared.subject != "topic" else {self.subject()}
        if ref.id is not None:
            is_there = bool(wanted & self.registry.subjects_of(ref.id))
        else:
            is_there = any(self.registry.look_up(subject, schema) for subject in sorted(wanted))
        if not is_there:
            expected = ", ".join(sorted(wanted or {self.subject(name) for name in self.records}))
            raise NotDecodable("foreign_schema", f"it is not registered under {expected}")

    def encode_like(self, document: Any, like: tuple[bytes, Headers] | None) -> Encoded:
        """`encode` with the schema of another message, given by its value and headers, if it has one."""
        if like is None:
            return self.encode(document)
        try:
            ref, _ = split(*like, has_indexes=self.has_indexes)
        except NotDecodable:
            ref = None
        return self.encode(document, ref)

    def encode(self, document: Any, like: SchemaRef | None = None) -> Encoded:
        """Encode a JSON document as a value.

        Args:
            document: The document.
            like: The schema to use first: the id of another message. By default the topic's own schema, or else the
                latest of its subject.

        Returns:
            The value with its schema's id.

        Raises:
            NotEncodable: The document does not fit the schema.
            SchemaRefused: The schema is not registered, and may or can not be.
            RegistryUnavailable: The registry gave no definite answer.
        """
        if like is not None:
            try:
                return self._encoded(self.writer_of(like), like.id, like.guid, document)
            except (NotDecodable, NotEncodable):
                if self.own is None:
                    raise NotEncodable(f"the document does not fit the schema of its message ({like})") from None
        writer = self.own_writer
        if writer is not None:
            own_id = self.own_id()
            return self._encoded(writer, own_id.id, own_id.guid, document)
        latest = self.registry.latest(self.own_subject)
        if latest is None:
            raise SchemaRefused(f"subject {self.own_subject} has no schema: register one")
        try:
            writer = self._writer(latest[1])
        except NotDecodable as error:
            raise NotEncodable(error.detail) from None
        return self._encoded(writer, latest[0].id, latest[0].guid, document)

    def _encoded(self, writer: Writer, schema_id: int | None, guid: str | None, document: Any) -> Encoded:
        payload, indexes = writer.encode(document)
        where = self.declared.schema_id_in
        return Encoded(*join(SchemaRef(schema_id, guid, indexes), payload, where))

    def own_id(self) -> Registered:
        """The id of the topic's own schema. It is registered if the topic's format says so.

        Raises:
            SchemaRefused: The schema is not registered, and may or can not be.
            RegistryUnavailable: The registry gave no definite answer.
        """
        if self._own_id is None:
            assert self.own is not None
            found = self.registry.look_up(self.own_subject, self.own)
            self._own_id = found or self.register()
        return self._own_id

    def register(self) -> Registered:
        """Register the topic's own schema; raises SchemaRefused with the rule that it breaks."""
        assert self.own is not None
        subject = self.own_subject
        if not self.declared.registers:
            raise SchemaRefused(
                f"subject {subject} does not have the schema of topic {self.topic}, and this project does not register "
                "it (registers=False): register it, or change the contract back"
            )
        try:
            return self.registry.register(subject, self.own)
        except SchemaRefused as error:
            latest = self.registry.latest(subject)
            level = self.registry.level_of(subject)
            rules = self.differences(latest[1]) if latest is not None else []
            named = f" ({'; '.join(rules)})" if rules else ""
            raise SchemaRefused(
                f"the registry refuses the schema of topic {self.topic} for subject {subject}, whose level of "
                f"compatibility is {level or 'that of the registry'}{named}: {error}. Change the contract so that "
                f"it is compatible, or declare a new topic for it ({self.topic}.v2)"
            ) from None

    def differences(self, earlier: SchemaText) -> list[str]:
        """The rules that the topic's own schema breaks against an earlier one, if this format can name them."""
        return []
