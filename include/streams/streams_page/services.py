"""Reads of Kafka, Kafka Connect, the landing tables and Airflow's own database for the Streams page."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any

from include.streams.contracts import Topic
from include.streams.kafka.consumers import Consumer
from include.streams.landing.consumers import LandingConsumer

# Answers take milliseconds.
BROKER_SECONDS = 3.0
# A client learns new brokers itself; a changed password needs a new client.
CLIENT_SECONDS = 300.0

Ends = dict[tuple[str, int], tuple[int, int]]


def log_ends(conn_id: str, topics: Collection[str]) -> Callable[[], Ends]:
    """A function that reads {(topic, partition): (first offset, end)} of these topics; it keeps its client."""
    import time

    client: Any = None
    created = float("-inf")

    def read() -> Ends:
        nonlocal client, created
        from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
        from confluent_kafka.admin import AdminClient, OffsetSpec

        from include.streams.kafka.connection import ClientErrors, admin_config, client_config

        try:
            if time.monotonic() - created > CLIENT_SECONDS:
                config = client_config(conn_id)
                errors = ClientErrors(conn_id, config)
                client, created = AdminClient(admin_config(config)), time.monotonic()
                with errors.explaining(client):
                    client.list_topics(timeout=BROKER_SECONDS)
            known = client.list_topics(timeout=BROKER_SECONDS).topics
            wanted = [
                TopicPartition(name, number)
                for name in topics
                if name in known
                for number, partition in known[name].partitions.items()
                if partition.leader >= 0
            ]
            if not wanted:
                return {}
            options = {"isolation_level": IsolationLevel.READ_COMMITTED, "request_timeout": BROKER_SECONDS}
            ends = client.list_offsets(dict.fromkeys(wanted, OffsetSpec.latest()), **options)
            lows = client.list_offsets(dict.fromkeys(wanted, OffsetSpec.earliest()), **options)
        except Exception:
            created = float("-inf")
            raise
        found: Ends = {}
        for partition in wanted:
            try:
                low, end = lows[partition].result(BROKER_SECONDS).offset, ends[partition].result(BROKER_SECONDS).offset
            except (KafkaException, TimeoutError):
                # Its leader does not answer: the partition is not known, the others are.
                continue
            found[partition.topic, partition.partition] = low, end
        return found

    return read


def group_offsets(consumer: Consumer | LandingConsumer) -> list[dict[str, Any]]:
    """Committed offset and log end of each partition of a consumer."""
    from include.streams.kafka.offsets import GroupOffsets

    topics = [consumer.topic] if isinstance(consumer, LandingConsumer) else consumer.topics
    with GroupOffsets(consumer.group, consumer.conn_id) as group:
        current = group.fetch_offsets_sync((topic.name for topic in topics), needs_committed=False)
        left_out = {partition: why for partition, why in group.left_out.items()}
    rows: list[dict[str, Any]] = [
        {
            "topic": partition.topic,
            "partition": partition.number,
            "topic_id": offsets.topic_id,
            "low": offsets.low,
            "end": offsets.end,
            "committed": offsets.committed,
        }
        for partition, offsets in sorted(current.items())
    ]
    return rows + [{"topic": p.topic, "partition": p.number, "problem": why} for p, why in sorted(left_out.items())]


def connector_states() -> dict[str, dict[str, Any]] | None:
    """{connector: its state, the states of its tasks, and why it failed}; None if Kafka Connect is not used."""
    from include.streams.compat.connections import is_defined
    from include.streams.landing.connect import CONN_ID, Connect
    from include.streams.landing.connector_status import ConnectorStatus

    if not is_defined(CONN_ID):
        return None
    states = {}
    for name, status in Connect().statuses().items():
        parsed = ConnectorStatus.parsed(status)
        states[name] = {
            "state": parsed.connector,
            "tasks": [{"task": number, "state": state} for number, state in sorted(parsed.tasks.items())],
            "cause": parsed.cause,
            "running": parsed.is_running,
            "failed": parsed.has_failed,
        }
    return states


def landing_table(topic: Topic, start_of: dict[int, int]) -> dict[str, Any] | None:
    """The state of a landing table; None if there is none yet.

    Args:
        topic: The landed topic.
        start_of: {partition: offset up to which it is known to be complete}.
    """
    from pyiceberg.exceptions import NoSuchTableError

    from include.streams.lake.catalog import load_current
    from include.streams.landing.index import LandingIndex, contiguous_end
    from include.streams.landing.tables import clean_table, load_landing_table, raw_table, row_count, start_offsets

    try:
        table = load_landing_table(topic)
    except NoSuchTableError:
        return None
    snapshot = table.current_snapshot()
    index, starts = LandingIndex(table), start_offsets(table)
    partitions = []
    for number in index.partitions:
        start = max(start_of.get(number, 0), starts.get(number, 0))
        partitions.append(
            {
                "partition": number,
                "start": starts.get(number, 0),
                "landed_end": index.end(number),
                "contiguous_end": contiguous_end(start, index.covered(number, start)),
            }
        )
    try:
        clean_rows = row_count(load_current(clean_table(topic)).current_snapshot())
    except NoSuchTableError:
        clean_rows = None
    summary = {} if snapshot is None else snapshot.summary or {}
    return {
        "table": raw_table(topic),
        "rows": row_count(snapshot),
        "clean_rows": clean_rows,
        "files": _number(summary, "total-data-files"),
        "bytes": _number(summary, "total-files-size"),
        "snapshots": len(table.metadata.snapshots),
        "committed_at": snapshot and datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC).isoformat(),
        "partitions": partitions,
    }


def _number(summary: Any, name: str) -> int | None:
    value = summary.get(name)
    return None if value is None else int(value)


def sink_lag(topic: Topic) -> dict[str, Any]:
    """Records that the sink of a topic has not read, and the end of each partition's log."""
    from include.streams.landing.connector_status import sink_progress

    progress = sink_progress(topic)
    return {
        "not_landed": progress.lag,
        "partitions": [
            {"partition": partition.number, "end": offsets.end, "committed": offsets.committed}
            for partition, offsets in sorted(progress.log.items())
        ],
        "blocked": [{"partition": partition.number, "end": end} for partition, end in sorted(progress.held.items())],
    }
