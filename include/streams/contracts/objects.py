"""The declaration of plain objects: the files in which a sink of another product lands a topic."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

# The names of the objects that the common sinks write, below the prefix. {any} is any text.
LAYOUTS = {
    # Confluent's S3 and GCS sinks, with the default partitioner.
    "confluent": "{topic}/partition={partition}/{topic}+{partition}+{start_offset}",
    # The same with the time-based partitioner. With `timestamp.extractor=Wallclock`, objects are in order of offsets.
    # By the time of the record, or of one of its fields, the offsets of several objects are mixed.
    "confluent-wallclock": "{topic}/{any}/{topic}+{partition}+{start_offset}",
    "confluent-time": "{topic}/{any}/{topic}+{partition}+{start_offset}",
    # Aiven's S3 and GCS sinks, with the default `file.name.template`.
    "aiven": "{topic}-{partition}-{start_offset}",
}
_NUMBER = r"[0-9]{1,19}"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_BUCKET = re.compile(r"([a-z0-9]+)://([^/]+)(?:/(.*))?")


@dataclass(frozen=True, kw_only=True)
class PlainObjects:
    """Objects in a bucket in which a sink lands a topic, each with the records of one partition.

    Whether an object has JSON lines or is a Parquet file, and its compression (gzip, zstd), are recognized by its
    content.

    Attributes:
        prefix: The address above the names of the layout: `gs://bucket/topics`. For Confluent's sinks, the bucket and
            `topics.dir`; for Aiven's, the bucket and `file.name.prefix`.
        layout: The names of the objects: "confluent", "confluent-wallclock", "confluent-time", "aiven", or a template
            with {topic}, {partition}, {start_offset} and {any}. A name may end with extensions.
        records: What a line, or a row, is. "envelope": an object with a record's value, offset and time. "values": only
            the value. Then the offset follows from the object's first offset and the number of the line.
        value: What the value is. "json": the JSON text itself. "text": a JSON string that holds the record's text.
            "base64": a JSON string that holds the record's bytes.
        value_field: The field of an envelope with the value.
        offset_field: The field of an envelope with the offset.
        timestamp_field: The field of an envelope with the record's time: milliseconds, or ISO 8601.
        is_dense: Only for "values": each offset of the topic has a line. False: the lines of an object are used only if
            the next object, or the sink's committed offset, shows that no offset is missing between them; the offsets
            of all other objects are read from Kafka. Set it only for a topic without transactions, and a sink that
            drops no record.
        group: The sink's consumer group: `connect-<name of the connector>`. Its committed offsets show what should
            have landed. None: missing offsets are found only before landed offsets.
        order_grace: How long offsets before landed offsets may be missing. Longer than a sink takes to upload all
            objects of one flush.

    Raises:
        ValueError: The objects cannot be read as declared.
    """

    prefix: str
    layout: str = "confluent"
    records: Literal["envelope", "values"] = "envelope"
    value: Literal["json", "text", "base64"] = "json"
    value_field: str = "value"
    offset_field: str = "offset"
    timestamp_field: str = "timestamp"
    is_dense: bool = False
    group: str | None = None
    order_grace: timedelta = timedelta(minutes=2)

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.prefix):
            raise ValueError(f"prefix {self.prefix!r}: write scheme, bucket and folder, for example gs://bucket/topics")
        placeholders = _PLACEHOLDER.findall(self.template)
        if unknown := set(placeholders) - {"topic", "partition", "start_offset", "any"}:
            raise ValueError(f"layout {self.layout!r}: no placeholder {', '.join(sorted(unknown))}")
        if not {"topic", "partition", "start_offset"} <= set(placeholders):
            raise ValueError(
                f"layout {self.layout!r}: one of {', '.join(LAYOUTS)}, or a template with {{topic}}, {{partition}} and "
                "{start_offset}: without all three, the records of an object cannot be placed"
            )
        if self.records not in ("envelope", "values") or self.value not in ("json", "text", "base64"):
            raise ValueError(f"records {self.records!r}, value {self.value!r}: see the attributes of PlainObjects")
        if self.records == "values" and self.layout == "confluent-time":
            raise ValueError(
                "layout 'confluent-time' with records='values': folders by the time of the records mix the offsets of "
                "several objects, so the number of a line says nothing. Let the sink write envelopes"
            )
        if self.is_dense and self.records != "values":
            raise ValueError("is_dense is only for records='values': envelopes have offsets of their own")

    @property
    def template(self) -> str:
        """The names of the objects below the prefix, without extensions."""
        return LAYOUTS.get(self.layout, self.layout)

    @property
    def scheme(self) -> str:
        """The scheme of the store: `gs`."""
        return self._address[1]

    @property
    def bucket(self) -> str:
        """The name of the bucket."""
        return self._address[2]

    @property
    def folder(self) -> str:
        """What all names in the bucket begin with: empty, or with a slash at the end."""
        folder = (self._address[3] or "").strip("/")
        return f"{folder}/" if folder else ""

    @property
    def _address(self) -> re.Match[str]:
        match = _BUCKET.fullmatch(self.prefix)
        assert match is not None
        return match

    def names(self, topic: str) -> re.Pattern[str]:
        """What the names of the topic's objects match.

        Args:
            topic: The topic's name.

        Returns:
            A pattern with the groups `partition` and `start_offset`.
        """
        pattern, at = re.escape(self.folder), 0
        seen: set[str] = set()
        for found in _PLACEHOLDER.finditer(self.template):
            pattern += re.escape(self.template[at : found.start()])
            name, at = found[1], found.end()
            if name == "topic":
                pattern += re.escape(topic)
            elif name == "any":
                pattern += ".+"
            elif name in seen:
                pattern += f"(?P={name})"
            else:
                pattern += f"(?P<{name}>{_NUMBER})"
                seen.add(name)
        return re.compile(pattern + re.escape(self.template[at:]) + r"(?:\.[A-Za-z0-9_.]+)?")

    def listed_below(self, topic: str) -> str:
        """What to list.

        Args:
            topic: The topic's name.

        Returns:
            What the names of all of the topic's objects begin with.
        """
        head = self.template.replace("{topic}", topic).split("{", 1)[0]
        return self.folder + head

    def as_json(self) -> dict[str, Any]:
        """The declaration as plain values, for a trigger."""
        return {**asdict(self), "order_grace": self.order_grace.total_seconds()}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> PlainObjects:
        """The declaration again.

        Args:
            values: What `as_json` has returned.

        Returns:
            The declaration.
        """
        return cls(**{**values, "order_grace": timedelta(seconds=values["order_grace"])})
