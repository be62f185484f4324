"""Write objects as the sinks of other products do: objects written again, overlapping, late, empty and damaged."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from include.streams.contracts.objects import PlainObjects
from include.streams.lake.buckets import bucket

Extension = Literal["", ".json", ".json.gz", ".gz"]


@dataclass(frozen=True)
class Sink:
    """One writer of a topic's objects.

    Attributes:
        topic: The topic's name.
        source: How the topic declares its objects.
        extension: The end of the names; with `.gz`, objects are compressed.
    """

    topic: str
    source: PlainObjects
    extension: Extension = ".json"

    def name(self, partition: int, start: int, folder: str = "year=2026/month=01/day=05/hour=10") -> str:
        """The name of an object in the bucket."""
        padded = f"{start:010}" if self.source.layout.startswith("confluent") else str(start)
        placed = self.source.template.replace("{any}", folder).replace("{topic}", self.topic)
        placed = placed.replace("{partition}", str(partition)).replace("{start_offset}", padded)
        return f"{self.source.folder}{placed}{self.extension}"

    def write(
        self, partition: int, records: Mapping[int, bytes | None], start: int | None = None, **kwargs: str
    ) -> str:
        """Write an object with these records, {offset: value}, and return its name. It may replace an object."""
        name = self.name(partition, min(records) if start is None else start, **kwargs)
        self.put(name, self.content(records))
        return name

    def content(self, records: Mapping[int, bytes | None]) -> bytes:
        """What an object with these records contains."""
        text = b"".join(self._line(offset, value) + b"\n" for offset, value in records.items())
        return gzip.compress(text) if self.extension.endswith(".gz") else text

    def put(self, name: str, content: bytes) -> None:
        """Write any content."""
        bucket(self.source.bucket).write(name, content)

    def delete(self, name: str) -> None:
        """Remove an object."""
        bucket(self.source.bucket).delete(name)

    def _line(self, offset: int, value: bytes | None) -> bytes:
        whole = b"null" if value is None else self._value(value)
        if self.source.records == "values":
            return whole
        return b'{"key":"k","%s":%s,"%s":%d,"%s":1767607200000,"headers":[]}' % (
            self.source.value_field.encode(),
            whole,
            self.source.offset_field.encode(),
            offset,
            self.source.timestamp_field.encode(),
        )

    def _value(self, value: bytes) -> bytes:
        if self.source.value == "json":
            return value
        text = base64.b64encode(value).decode() if self.source.value == "base64" else value.decode()
        return json.dumps(text).encode()
