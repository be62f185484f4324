"""The state of a connector: its status in Connect, and its progress by the offsets of its groups in Kafka."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from include.streams.contracts import Topic
from include.streams.kafka.connection import CONN_ID as KAFKA_CONN_ID
from include.streams.kafka.offsets import GroupOffsets, Partition, PartitionOffsets
from include.streams.landing.connect import Connect
from include.streams.landing.connectors import control_topic, coordinator_group
from include.streams.landing.tables import sink_group

MISSING = "MISSING"
# Connect has no status of a new connector until a worker has taken it: a moment after its creation.
STARTING = {"connector": {"state": "UNASSIGNED"}, "tasks": []}
_EXCEPTION = re.compile(r"^(?:Caused by: )?(?:[\w$]+\.)*([\w$]*(?:Exception|Error|Throwable))\b", re.MULTILINE)
_FRAME = re.compile(r"^\s*at ([\w.$<>]+)\(", re.MULTILINE)
MAX_TRACE_LENGTH = 400
# Kafka Connect's error when it refuses a record's timestamp (raised by its own class, before any converter).
_REFUSED_TIMESTAMP = "InvalidRecordException: Invalid record timestamp"


@dataclass(frozen=True)
class Standing:
    """The status of a connector in Connect.

    Attributes:
        connector: The connector's own state.
        tasks: {task number: its state}.
        cause: Why something failed.
        refuses_timestamp: A task failed at a record's timestamp, and fails there again after every restart.
    """

    connector: str
    tasks: Mapping[int, str]
    cause: str = ""
    refuses_timestamp: bool = False

    @classmethod
    def of(cls, connect: Connect, name: str) -> "Standing":
        """Query Connect.

        Args:
            connect: Kafka Connect.
            name: The connector.

        Raises:
            ConnectUnreachable, ConnectRefused: Connect does not answer, or refuses.
        """
        status = connect.status(name)
        if status is None:
            if connect.config(name) is None:
                return cls(MISSING, {})
            status = STARTING
        failed = [part for part in (status["connector"], *status["tasks"]) if part["state"] == "FAILED"]
        traces = [part.get("trace") or "" for part in failed]
        return cls(
            status["connector"]["state"],
            {task["id"]: task["state"] for task in status["tasks"]},
            shortened(traces[0]) if traces else "",
            any(_REFUSED_TIMESTAMP in trace for trace in traces),
        )

    @property
    def has_failed(self) -> bool:
        return "FAILED" in (self.connector, *self.tasks.values())

    @property
    def is_running(self) -> bool:
        return self.connector == "RUNNING" and bool(self.tasks) and set(self.tasks.values()) == {"RUNNING"}

    def __str__(self) -> str:
        tasks = ", ".join(f"task {number} {state}" for number, state in sorted(self.tasks.items()))
        return f"{self.connector} ({tasks or 'no tasks'})"


@dataclass(frozen=True)
class Progress:
    """The progress of a sink.

    Attributes:
        lag: Records that its tasks have not read.
        sink: The sum of the offsets that its tasks have committed; None: none yet.
        table: The sum of the control topic's offsets up to which its coordinator has committed the files to the table;
            None: none yet.
        log: The offsets of the topic's partitions.
        held: {partition: the end of its log}, of partitions with an open transaction. The sink reads no record behind
            it.
        is_whole: All partitions were found.
    """

    lag: int
    sink: int | None
    table: int | None
    log: Mapping[Partition, PartitionOffsets]
    held: Mapping[Partition, int]
    is_whole: bool = True


def progress(topic: Topic, kafka_conn_id: str = KAFKA_CONN_ID) -> Progress:
    """Query Kafka. Raises KafkaException."""
    with GroupOffsets(sink_group(topic), kafka_conn_id) as group:
        sink = group.fetch_offsets_sync([topic.name])
        held, is_whole = group.find_open_transactions(sink), not group.incomplete
    with GroupOffsets(coordinator_group(topic), kafka_conn_id) as group:
        table = group.fetch_offsets_sync([control_topic(topic)])
    return Progress(
        lag=sum(offsets.lag for offsets in sink.values()),
        sink=_sum(sink),
        table=_sum(table),
        log=sink,
        held=held,
        is_whole=is_whole,
    )


def _sum(found: Mapping[Any, PartitionOffsets]) -> int | None:
    known = [offsets.committed for offsets in found.values() if offsets.committed is not None]
    return sum(known) if known else None


def shortened(trace: str) -> str:
    """Shorten a Java stack trace to the names of its exceptions, outermost first, and where the last one was thrown.

    The messages are left out: those of converters and transforms quote records.
    """
    names = _EXCEPTION.findall(trace)
    frames = _FRAME.findall(trace.rsplit("Caused by: ", 1)[-1])
    text = " <- ".join(names) + (f" in {frames[0]}" if names and frames else "")
    return text[:MAX_TRACE_LENGTH] or "no trace"
