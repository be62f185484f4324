"""The id of a message's schema: at the beginning of the value, or in a header.

Read are Confluent's framing (a zero byte and an id of four bytes, or a one and an id of 16 bytes; for Protobuf then the
numbers of the message's type in its file), the same bytes in Confluent's header, and the header of Apicurio's
serializers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO
from typing import Literal, NamedTuple
from uuid import UUID

from include.streams.formats.errors import NotDecodable

Headers = Sequence[tuple[str, bytes | None]]

CONFLUENT_HEADER = "__value_schema_id"
# The id of a schema's content as eight bytes: the id that Apicurio's registry also has in Confluent's API.
APICURIO_HEADER = "apicurio.value.contentId"
# The headers that say with which schema a value is written.
SCHEMA_HEADERS = {CONFLUENT_HEADER, APICURIO_HEADER}
# A file has few message types, nested in few others. An array that claims more is no such array.
MAX_INDEXES = 32


class SchemaRef(NamedTuple):
    """The id in a message: `id` or `guid` is set. `indexes` is the path of the message's type in a Protobuf file."""

    id: int | None
    guid: str | None
    indexes: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"schema id {self.id}" if self.guid is None else f"schema id {self.guid}"


def split(value: bytes, headers: Headers, *, has_indexes: bool) -> tuple[SchemaRef, bytes]:
    """Take the schema's id from a message.

    Args:
        value: The message's value.
        headers: The message's headers; of several with one name, the last counts.
        has_indexes: Whether the numbers of a type follow the id (Protobuf).

    Returns:
        The id, and the bytes after it.

    Raises:
        NotDecodable: The message has no id.
    """
    named = {name: content for name, content in headers if content is not None}
    if (framed := named.get(CONFLUENT_HEADER)) is not None:
        rest = BytesIO(framed)
        return _read(rest, has_indexes, f"the header {CONFLUENT_HEADER}"), value
    content_id = named.get(APICURIO_HEADER)
    if content_id is not None and len(content_id) == 8:
        (schema_id,) = struct.unpack(">q", content_id)
        return SchemaRef(schema_id, None), value
    rest = BytesIO(value)
    found = _read(rest, has_indexes, "the value")
    return found, value[rest.tell() :]


def join(ref: SchemaRef, payload: bytes, where: Literal["prefix", "header"]) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Add the schema's id to a message.

    Args:
        ref: The id, and the numbers of the type in a Protobuf file.
        payload: The encoded message.
        where: Where the id goes.

    Returns:
        The value, and the headers to add.
    """
    has_guid = where == "header" and ref.guid is not None
    framed = b"\1" + UUID(ref.guid).bytes if has_guid else b"\0" + struct.pack(">I", ref.id)
    if ref.indexes:
        # A single zero, the first type of the file, is written as the length zero.
        numbers = () if ref.indexes == (0,) else (len(ref.indexes), *ref.indexes)
        framed += b"".join(map(_varint, numbers)) or b"\0"
    return (payload, [(CONFLUENT_HEADER, framed)]) if where == "header" else (framed + payload, [])


def _read(data: BytesIO, has_indexes: bool, where: str) -> SchemaRef:
    magic = data.read(1)
    length = {b"\0": 4, b"\1": 16}.get(magic, 0)
    found = data.read(length)
    if not length or len(found) < length:
        raise NotDecodable("no_schema_id", f"{where} does not begin with the id of a schema")
    indexes = _read_indexes(data) if has_indexes else ()
    if length == 4:
        return SchemaRef(int.from_bytes(found, "big"), None, indexes)
    return SchemaRef(None, str(UUID(bytes=found)), indexes)


def _read_indexes(data: BytesIO) -> tuple[int, ...]:
    count = _read_varint(data)
    if not 0 <= count <= MAX_INDEXES:
        raise NotDecodable("not_decodable", "the numbers of the message's type after the schema's id are damaged")
    return tuple(_read_varint(data) for _ in range(count)) or (0,)


def _varint(number: int) -> bytes:
    """A number as Avro and Confluent's framing write it: zigzag, seven bits in each byte."""
    rest = number << 1
    encoded = bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


def _read_varint(data: BytesIO) -> int:
    number = shift = 0
    while True:
        byte = data.read(1)
        if not byte or shift > 28:
            raise NotDecodable("not_decodable", "the numbers of the message's type after the schema's id are damaged")
        number |= (byte[0] & 0x7F) << shift
        shift += 7
        if not byte[0] & 0x80:
            return number >> 1 if not number & 1 else -((number + 1) >> 1)
