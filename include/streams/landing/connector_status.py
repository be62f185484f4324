"""The state of a connector: its status in Connect, and its progress, from the offsets of its groups in Kafka."""

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
# The status of a new connector until a worker has taken it: for that moment, Connect has none.
STARTING = {"connector": {"state": "UNASSIGNED"}, "tasks": []}
_EXCEPTION = re.compile(r"^(?:Caused by: )?(?:[\w$]+\.)*([\w$]*(?:Exception|Error|Throwable))\b", re.MULTILINE)
_FRAME = re.compile(r"^\s*at ([\w.$<>]+)\(", re.MULTILINE)
MAX_TRACE_LENGTH = 400
# Kafka Connect's error when it refuses a record's timestamp (raised by its own class, before any converter).
_REFUSED_TIMESTAMP = "InvalidRecordException: Invalid record timestamp"


@dataclass(frozen=True)
class ConnectorStatus:
    """The status of a connector in Connect.

    Attributes:
        connector: The connector's own state.
        tasks: {task number: its state}.
        cause: Why something failed.
        refuses_timestamp: Whether a task failed at a record's timestamp. It then fails again after every restart.
    """

    connector: str
    tasks: Mapping[int, str]
    cause: str = ""
    refuses_timestamp: bool = False

    @classmethod
    def of(cls, connect: Connect, name: str) -> "ConnectorStatus":
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
        return cls.parsed(status)

    @classmethod
    def parsed(cls, status: Mapping[str, Any]) -> "ConnectorStatus":
        """The status in Connect's own form.

        Args:
            status: As `Connect.status` returns it.
        """
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
class SinkProgress:
    """The progress of a sink.

    Attributes:
        lag: Records that its tasks have not read.
        sink: The sum of the offsets that its tasks have committed; None if there are none yet.
        table: The sum of the control topic's offsets up to which its coordinator has committed the files to the table;
            None if there are none yet.
        log: The offsets of the topic's partitions.
        held: {partition: the end of its log} for partitions with an open transaction. The sink reads no record after
            the beginning of the transaction.
        is_whole: Whether all partitions were found.
    """

    lag: int
    sink: int | None
    table: int | None
    log: Mapping[Partition, PartitionOffsets]
    held: Mapping[Partition, int]
    is_whole: bool = True


def sink_progress(topic: Topic, kafka_conn_id: str = KAFKA_CONN_ID) -> SinkProgress:
    """Read the progress of a topic's sink from Kafka.

    Args:
        topic: The landed topic.
        kafka_conn_id: The Airflow connection of Kafka.

    Raises:
        KafkaException: The broker is unavailable or refuses.
    """
    with GroupOffsets(sink_group(topic), kafka_conn_id) as group:
        sink = group.fetch_offsets_sync([topic.name])
        held, is_whole = group.find_open_transactions(sink), not group.incomplete
    with GroupOffsets(coordinator_group(topic), kafka_conn_id) as group:
        table = group.fetch_offsets_sync([control_topic(topic)])
    return SinkProgress(
        lag=sum(offsets.lag for offsets in sink.values()),
        sink=_sum(sink),
        table=_sum(table),
        log=sink,
        held=held,
        is_whole=is_whole,
    )


def _sum(partitions: Mapping[Any, PartitionOffsets]) -> int | None:
    committed = [offsets.committed for offsets in partitions.values() if offsets.committed is not None]
    return sum(committed) if committed else None


def shortened(trace: str) -> str:
    """Shorten a Java stack trace to the names of its exceptions, outermost first, and the place of the last one.

    The messages are left out, because those of converters and transforms quote records.
    """
    names = _EXCEPTION.findall(trace)
    frames = _FRAME.findall(trace.rsplit("Caused by: ", 1)[-1])
    text = " <- ".join(names) + (f" in {frames[0]}" if names and frames else "")
    return text[:MAX_TRACE_LENGTH] or "no trace"
