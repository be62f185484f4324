"""How a topic declares its format."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

SubjectNaming = Literal["topic", "record", "topic_record"]
# The name of a record or a package: "com.example.Order".
_FULL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
CONN_ID = "schema_registry"
LEVELS = ("BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE", "NONE")


class Json:
    """Plain JSON texts, without a schema registry."""

    def __repr__(self) -> str:
        return "JSON"


JSON = Json()


@dataclass(frozen=True, kw_only=True)
class RegistryFormat:
    """A format whose schemas are in a schema registry that speaks Confluent's API.

    Each value begins with the id of its schema, or a header holds the id. Both are read, whatever is declared.

    Attributes:
        subject: How the subject of the topic's schemas is named: "topic" (`<topic>-value`), "record" (the full name of
            the record), or "topic_record" (`<topic>-<record>`).
        records: The full names of the records that the topic may hold, such as "com.example.Order". Empty for the
            record of the topic's own schema. If the topic has no schema of its own, and its subjects are named by
            record, empty means any record.
        schema: A file with the schema of the topic's messages, in the format's own language. None to derive it from the
            contract; a topic that somebody else defines then has none.
        namespace: The namespace (Avro) or package (Protobuf) of a derived schema.
        schema_id_in: Where produced messages hold the schema's id: "prefix" or "header".
        registers: Whether this project registers the schema. If not, somebody else registers it, and `prepare_services`
            only checks that it is there.
        compatibility: The compatibility level that `prepare_services` sets for the topic's subject, such as
            "BACKWARD". None to leave the registry's setting.
        conn_id: The Airflow connection of the registry.

    Raises:
        ValueError: An attribute cannot be used; the text names it.
    """

    subject: SubjectNaming = "topic"
    records: tuple[str, ...] = ()
    schema: Path | None = None
    namespace: str = ""
    schema_id_in: Literal["prefix", "header"] = "prefix"
    registers: bool = True
    compatibility: str | None = None
    conn_id: str = CONN_ID

    # The type's name in the registry, and the suffixes of schema files.
    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        if self.subject not in ("topic", "record", "topic_record"):
            raise ValueError(f"subject: {self.subject!r}; choose topic, record or topic_record")
        if self.schema_id_in not in ("prefix", "header"):
            raise ValueError(f"schema_id_in: {self.schema_id_in!r}; choose prefix or header")
        for name in (*self.records, *([self.namespace] if self.namespace else [])):
            if not _FULL_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a full name such as 'com.example.Order'")
        if self.schema is not None and self.schema.suffix not in self.suffixes:
            raise ValueError(f"schema: {self.schema.name}: the file's name must end with {' or '.join(self.suffixes)}")
        if self.compatibility is not None and self.compatibility not in LEVELS:
            raise ValueError(f"compatibility: {self.compatibility!r}; choose one of {', '.join(LEVELS)}")


class Avro(RegistryFormat):
    """Avro. Messages are read with the topic's own schema, if it has one, by Avro's rules of schema resolution."""

    kind = "AVRO"
    suffixes = (".avsc",)


class Protobuf(RegistryFormat):
    """Protocol Buffers. Messages are read by the field numbers of the topic's own schema, if it has one."""

    kind = "PROTOBUF"
    suffixes = (".proto",)


class JsonSchema(RegistryFormat):
    """JSON texts whose JSON Schema is in the registry. The contract alone judges the values."""

    kind = "JSON"
    suffixes = (".json",)


Format = Json | RegistryFormat
