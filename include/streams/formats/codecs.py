"""The codec of a topic."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from include.streams.formats.avro import AvroCodec
from include.streams.formats.codec import Codec
from include.streams.formats.declared import RegistryFormat
from include.streams.formats.json_schema import JsonSchemaCodec
from include.streams.formats.protobuf import ProtobufCodec

_CODECS: dict[str, type[Codec]] = {"AVRO": AvroCodec, "PROTOBUF": ProtobufCodec, "JSON": JsonSchemaCodec}


@lru_cache(maxsize=1_000)
def codec_of(topic: str, declared: RegistryFormat, contract: Any) -> Codec:
    """The codec of a topic, one for each process, so that its schemas are fetched once.

    Args:
        topic: The topic's name.
        declared: Its format.
        contract: The model from which its schema is derived; None if somebody else defines the messages.
    """
    return _CODECS[declared.kind](topic, declared, contract)
