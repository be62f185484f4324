"""Formats of messages: JSON, and Avro, Protobuf and JSON Schema through a schema registry.

A value in any format has one JSON text (the modules `avro` and `protobuf` say which). Contracts, repairs and the checks
of both lanes work on this text, so a message means the same whatever its format is.
"""

from include.streams.formats.declared import JSON, Avro, Format, Json, JsonSchema, Protobuf, RegistryFormat
from include.streams.formats.errors import (
    NotDecodable,
    NotDerivable,
    NotEncodable,
    RegistryUnavailable,
    SchemaRefused,
)

__all__ = [
    "JSON",
    "Avro",
    "Format",
    "Json",
    "JsonSchema",
    "NotDecodable",
    "NotDerivable",
    "NotEncodable",
    "Protobuf",
    "RegistryFormat",
    "RegistryUnavailable",
    "SchemaRefused",
]
