"""Records that no client library sends, written to the broker byte by byte.

Client libraries check what they send; a broker checks little. Programs that write the protocol themselves can send
header names that are not UTF-8, and timestamps outside of every calendar.

The bytes follow the Kafka protocol: a Produce request of version 3 with a record batch of version 2
(https://kafka.apache.org/protocol, "Record Batch").
"""

import gzip
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

PRODUCE, PRODUCE_VERSION = 0, 3
ACKS_ALL, BROKER_TIMEOUT_MS = -1, 30_000
SOCKET_TIMEOUT_SECONDS = 35.0
BATCH_MAGIC, GZIP = 2, 1


class ProduceRefused(Exception):
    """The broker answered with an error code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the broker refused the batch with error code {code}")
        self.code = code


@dataclass(frozen=True)
class RawRecord:
    """One record as bytes.

    Attributes:
        timestamp: The number in the record's millisecond field, valid or not.
        gzipped: Whether the batch is compressed, so that a large value is small on the wire.
    """

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    timestamp: int = 0
    gzipped: bool = False


def produce(bootstrap: str, topic: str, partition: int, record: RawRecord) -> int:
    """Write one record to a partition that this broker leads.

    Args:
        bootstrap: `host:port` of a plaintext listener.
        topic: An existing topic.
        partition: The number of the partition.
        record: The record.

    Returns:
        The record's offset.

    Raises:
        ProduceRefused: The broker refuses the record.
        OSError: The broker cannot be reached.
    """
    host, port = bootstrap.rsplit(":", 1)
    batch = record_batch(record)
    body = (
        struct.pack(">hhi", -1, ACKS_ALL, BROKER_TIMEOUT_MS)
        + struct.pack(">i", 1)
        + _text(topic)
        + struct.pack(">iii", 1, partition, len(batch))
        + batch
    )
    header = struct.pack(">hhi", PRODUCE, PRODUCE_VERSION, 1) + _text("wire")
    request = header + body
    with socket.create_connection((host, int(port)), timeout=SOCKET_TIMEOUT_SECONDS) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        (length,) = struct.unpack(">i", _exactly(connection, 4))
        answer = _exactly(connection, length)
    # Correlation id, one topic with its name, one partition: its number, error code, base offset.
    name_length = struct.unpack_from(">h", answer, 8)[0]
    _, code, offset = struct.unpack_from(">ihq", answer, 10 + name_length + 4)
    if code:
        raise ProduceRefused(code)
    return offset


def record_batch(record: RawRecord) -> bytes:
    """A batch of one record, with its checksum."""
    import google_crc32c

    attributes = GZIP if record.gzipped else 0
    content = gzip.compress(_record(record)) if record.gzipped else _record(record)
    times = (record.timestamp, record.timestamp)
    fields = struct.pack(">hiqqqhii", attributes, 0, *times, -1, -1, -1, 1) + content
    checksum = google_crc32c.value(fields)
    counted = struct.pack(">ibI", -1, BATCH_MAGIC, checksum) + fields
    return struct.pack(">qi", 0, len(counted)) + counted


def _record(record: RawRecord) -> bytes:
    body = b"\0" + _varint(0) + _varint(0) + _bytes(record.key) + _bytes(record.value) + _varint(len(record.headers))
    for name, value in record.headers:
        body += _bytes(name) + _bytes(value)
    return _varint(len(body)) + body


def _bytes(value: bytes | None) -> bytes:
    return _varint(-1) if value is None else _varint(len(value)) + value


def _varint(number: int) -> bytes:
    """A number in zigzag encoding: seven bits per byte, the lowest first."""
    rest = (number << 1) ^ (number >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*out, rest])


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">h", len(encoded)) + encoded


def _exactly(connection: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        if not (piece := connection.recv(length - len(received))):
            raise ConnectionError("the broker closed the connection without an answer")
        received += piece
    return received
