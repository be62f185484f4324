"""Replay: send dead letters that now pass their contract back to their topic.

A replay has two tasks: `plan_replay` records the offset ranges to read, and `replay` reads exactly these. The dead
letters that stay lie between those that are done, so every run reads all of them, and the table `replays` tells them
apart.

A message is sent while the row that records it is written but not committed. Killed before the commit: the retry sends
the message again, with the same event id, and the inbox of each consumer ensures that it has one effect. Killed after
the commit: the retry skips it. Two processes at once: the second one waits for the row, and then skips the message.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, NamedTuple, TypedDict

from include.streams.contracts import ContractViolation, NotWanted, Reason, Registry, Topic
from include.streams.contracts.repairs import Repairs
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.dead_letter_records import DeadLetterRecord, RecordHeaders
from include.streams.kafka.messages import Message
from include.streams.kafka.offsets import GroupOffsets, OffsetRange, PartitionOffsets
from include.streams.kafka.originals import Originals
from include.streams.kafka.producer import AcknowledgedProducer, OutgoingRecord, record_refusal
from include.streams.kafka.reading import CONSUMER_SETTINGS, RangeReader
from include.streams.kafka.replay_selection import Selection
from include.streams.kafka.replays import (
    RECORDED,
    ReplayOutcome,
    Source,
    count_replayed,
    look_up,
    record,
    source_columns,
)
from include.streams.kafka.xcom import TopicRange, as_range
from include.streams.operations.database import begin

log = logging.getLogger(__name__)

# The name that the broker sees. No client joins this group or commits offsets for it.
GROUP = "replay_dead_letters"
# Dead letters in the report, which passes through XCom, a row of Airflow's database. The counts cover all of them.
MAX_ROWS = 100


class Count(TypedDict):
    """How many dead letters with this reason had this outcome."""

    reason: str
    outcome: str
    count: int


class Row(TypedDict):
    """One dead letter: "partition@offset" of its record and of its message ("" if it never was on the topic)."""

    dead_letter: str
    message: str
    reason: str
    outcome: str
    repairs: str
    detail: str


class ReplayReport(TypedDict):
    """What a replay did, or would do. It holds no values of messages."""

    topic: str
    dry_run: bool
    counts: list[Count]
    dead_letters: list[Row]


class ReplayImpossible(Exception):
    """A topic does not meet the needs of a replay; the text names the change to make."""


def plan_replay(params: Mapping[str, Any], topics: Registry, *, conn_id: str = CONN_ID) -> list[TopicRange]:
    """Check the parameters of a replay, and record the offsets that each try of its task reads.

    Args:
        params: The fields of a `Selection`.
        topics: The project's topics.
        conn_id: The Airflow connection of the broker.

    Returns:
        All that is in the dead-letter topic now.

    Raises:
        ValidationError: Pydantic rejects the parameters.
        AirflowSkipException: There are no dead letters.
        ReplayImpossible: A topic is missing; Airflow retries the task.
        KafkaException: The broker did not answer; Airflow retries the task.
    """
    from airflow.sdk.exceptions import AirflowSkipException

    topic = topics[Selection.model_validate(params).topic]
    with GroupOffsets(GROUP, conn_id) as group:
        _, dead = replay_extent(group, topic)
    ranges = [
        OffsetRange(topic.dead_letter_name, offsets.topic_id, partition, offsets.low, offsets.end)
        for partition, offsets in sorted(dead.items())
        if offsets.low < offsets.end
    ]
    if not ranges:
        raise AirflowSkipException(f"{topic.dead_letter_name} is empty")
    log.info("dead letters of %s: %s", topic.name, [str(wanted) for wanted in ranges])
    return [as_range(wanted) for wanted in ranges]


def replay(
    ranges: Sequence[TopicRange],
    params: Mapping[str, Any],
    run_id: str,
    *,
    topics: Registry,
    repairs: Repairs,
    conn_id: str = CONN_ID,
) -> ReplayReport:
    """Process the selected dead letters of the ranges, and log the report as a table.

    Args:
        ranges: The return value of `plan_replay`.
        params: The fields of a `Selection`.
        run_id: The Dag run's id.
        topics: The project's topics.
        repairs: The repairs of their messages.
        conn_id: The Airflow connection of the broker.

    Returns:
        The report.

    Raises:
        AirflowFailException: The dead-letter topic was recreated after the plan was made; Airflow does not retry.
        Exception: What the broker and the database raise; Airflow retries the task, which continues where it stopped.
    """
    from airflow.sdk.exceptions import AirflowFailException

    selection = Selection.model_validate(params)
    topic = topics[selection.topic]
    with GroupOffsets(GROUP, conn_id, **CONSUMER_SETTINGS) as group, AcknowledgedProducer(conn_id) as producer:
        own, dead = replay_extent(group, topic)
        (planned,) = {wanted["topic_id"] for wanted in ranges}
        if {offsets.topic_id for offsets in dead.values()} != {planned}:
            raise AirflowFailException(f"{topic.dead_letter_name} was recreated after this replay was planned")
        (topic_id,) = {offsets.topic_id for offsets in own.values()}
        with Originals(topic.name, topic_id, group=GROUP, conn_id=conn_id) as originals:
            sent = count_replayed(planned, run_id)
            attempt = _Replay(selection, topic, own, originals, producer, repairs, run_id, sent)
            reader = RangeReader(group.consumer)
            for wanted in ranges:
                for batch in reader.read(OffsetRange(**wanted)):
                    attempt.process(batch)
    report = attempt.report()
    log.info("%s", as_table(report))
    return report


def replay_extent(group: GroupOffsets, topic: Topic) -> tuple[dict[int, PartitionOffsets], dict[int, PartitionOffsets]]:
    """Fetch the offsets of a topic and of its dead-letter topic.

    Args:
        group: Asks the broker.
        topic: The topic.

    Returns:
        {partition: offsets} of the topic, and of its dead-letter topic.

    Raises:
        ReplayImpossible: A topic is missing or incomplete.
        KafkaException: The broker did not answer.
    """
    names = topic.name, topic.dead_letter_name
    found = group.fetch_offsets_sync(names, needs_committed=False)
    own, dead = ({at.number: offsets for at, offsets in found.items() if at.topic == name} for name in names)
    if group.incomplete or not own or not dead:
        raise ReplayImpossible(
            f"topic {topic.name} or {topic.dead_letter_name} does not exist, may not be read, or has no leader: run "
            "prepare_services, grant READ on both topics, or wait for the broker"
        )
    return own, dead


def as_table(report: Mapping[str, Any]) -> str:
    """Format a report as text for people."""
    title = "nothing was changed: dry run" if report["dry_run"] else "done"
    lines = [f"dead letters of {report['topic']} ({title})", "", *_columns(report["counts"], Count.__annotations__)]
    if report["dead_letters"]:
        lines += ["", *_columns(report["dead_letters"], Row.__annotations__)]
        more = sum(row["count"] for row in report["counts"]) - len(report["dead_letters"])
        lines += [f"and {more} more"] if more else []
    return "\n".join(lines)


def _columns(rows: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    cells = [(*names,), *([str(row[name]) for name in names] for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


class _Settled(NamedTuple):
    """The outcome of a dead letter, the names of the repairs, and the reason for which the message still fails."""

    outcome: ReplayOutcome
    repairs: str = ""
    detail: str = ""


_REPLAYED_BEFORE = _Settled(ReplayOutcome.replayed_before)


@dataclass
class _Replay:
    """One try of a replay: processes dead letters, and counts their outcomes."""

    selection: Selection
    topic: Topic
    # The topic's own offsets, by partition.
    offsets: Mapping[int, PartitionOffsets]
    originals: Originals
    producer: AcknowledgedProducer
    repairs: Repairs
    run_id: str
    # Messages that this run has sent, or would send; those of earlier tries included.
    sent: int
    # Messages of which a dead letter was replayed, or would be.
    done: set[Source] = field(default_factory=set)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    rows: list[Row] = field(default_factory=list)

    def process(self, batch: Iterable[Message]) -> None:
        """Process records of one partition of the dead-letter topic, in offset order.

        The outcomes of those that stay are recorded at the end: a task that is killed before finds them again.
        """
        letters = [DeadLetterRecord.of(record, self.topic.name) for record in batch]
        letters = [one for one in letters if self.selection.takes(one.record.timestamp, one.origin)]
        known, done = look_up(self.topic.name, letters)
        self.done |= done
        news = []
        for letter in letters:
            row = known.get(letter.record.offset)
            settled = self._settle(letter, row)
            self._count(letter, settled)
            # Not again with the same outcome: ten thousand that still fail would be ten thousand rows in every run.
            is_new = row is None or (row.outcome, row.detail or "") != (settled.outcome, settled.detail)
            if settled.outcome in RECORDED and is_new:
                news.append(self._row(letter, settled))
        if news and not self.selection.dry_run:
            with begin() as connection:
                record(connection, news)

    def report(self) -> ReplayReport:
        """The counts of all processed dead letters, and the first MAX_ROWS that no earlier run has replayed."""
        counts = [Count(reason=r, outcome=outcome, count=n) for (r, outcome), n in sorted(self.counts.items())]
        dry_run = self.selection.dry_run
        return ReplayReport(topic=self.topic.name, dry_run=dry_run, counts=counts, dead_letters=self.rows)

    def _count(self, letter: DeadLetterRecord, settled: _Settled) -> None:
        at, origin = letter.record, letter.origin
        reason = str(origin.reason) if origin else ""
        self.counts[reason, settled.outcome] += 1
        if settled.outcome is not ReplayOutcome.replayed_before and len(self.rows) < MAX_ROWS:
            place = f"{at.partition}@{at.offset}"
            source = f"{origin.partition}@{origin.offset}" if origin and origin.was_on_the_topic else ""
            self.rows.append(Row(dead_letter=place, message=source, reason=reason, **settled._asdict()))

    def _settle(self, letter: DeadLetterRecord, known: Any) -> _Settled:
        if known is not None and known.outcome == ReplayOutcome.replayed:
            # An earlier try of this task, or the task before its run was cleared, belongs to this run too.
            by_this_run = known.run_id == self.run_id
            return _Settled(ReplayOutcome.replayed, known.repairs or "") if by_this_run else _REPLAYED_BEFORE
        if letter.origin is None:
            return _Settled(ReplayOutcome.unreadable)
        if letter.origin.source in self.done:
            return _Settled(ReplayOutcome.duplicate)
        if letter.replays and not self.selection.again:
            detail = f"replayed {letter.replays} times; set `again` to replay it again"
            return _Settled(ReplayOutcome.failed_again, detail=detail)
        try:
            outgoing, repairs = self._outgoing(letter, letter.origin)
        except ContractViolation as violation:
            return _Settled(ReplayOutcome.failing, detail=f"{violation.reason}: {violation.detail}")
        except NotWanted:
            detail = "not wanted: no contract of the topic's union takes its type"
            return _Settled(ReplayOutcome.failing, detail=detail)
        if self.sent >= self.selection.limit:
            return _Settled(ReplayOutcome.over_limit, repairs)
        if self.selection.dry_run:
            settled = _Settled(ReplayOutcome.would_replay, repairs)
        else:
            settled = self._send(letter, outgoing, _Settled(ReplayOutcome.replayed, repairs))
        if settled.outcome in (ReplayOutcome.replayed, ReplayOutcome.would_replay):
            self.sent += 1
            if (source := letter.origin.source) is not None:
                self.done.add(source)
        return settled

    def _send(self, letter: DeadLetterRecord, outgoing: OutgoingRecord, replayed: _Settled) -> _Settled:
        try:
            with begin() as connection:
                if not record(connection, [self._row(letter, replayed)]):
                    return _REPLAYED_BEFORE
                self.producer.send(**outgoing._asdict())
                self.producer.flush()
        except Exception as error:
            if (refusal := record_refusal(error)) is None:
                raise
            # The topic's settings have changed: a lower limit, or compaction, which takes no record without a key. A
            # retry would fail at this record again and never reach the next one.
            reason = Reason.too_large if refusal.is_size_error else Reason.rejected
            detail = f"{reason}: topic {self.topic.name} refuses it ({refusal.code})"
            return _Settled(ReplayOutcome.failing, detail=detail)
        log.info("replayed: dead_letter=%s repairs=%s", letter.record, replayed.repairs)
        return replayed

    def _outgoing(self, letter: DeadLetterRecord, origin: RecordHeaders) -> tuple[OutgoingRecord, str]:
        """The message as it goes back, and the names of its repairs.

        Raises:
            ContractViolation: The message still breaks its contract, or the topic no longer holds the whole of it.
            NotWanted: No contract of the topic's union takes its type.
        """
        if origin.stub_of is not None:
            letter = self._whole(letter, origin)
        repaired = self.repairs.apply(self.topic, letter.record.value, letter.headers)
        key = letter.record.key
        if (origin.landed_text or not origin.was_on_the_topic) and self.topic.key is not None:
            # There is no original key: the landing table keeps no keys. On somebody else's topic, no field may be known
            # to be the key.
            key = str(getattr(repaired.event, self.topic.key)).encode()
        headers = letter.headers_for_replay(self.topic.name, self.run_id)
        # To the message's original partition: messages with one key belong in one partition, and a producer in another
        # language may map keys to partitions differently.
        partition = origin.partition if origin.partition in self.offsets else None
        return OutgoingRecord(self.topic.name, key, repaired.value, headers, partition), ", ".join(repaired.repairs)

    def _whole(self, letter: DeadLetterRecord, origin: RecordHeaders) -> DeadLetterRecord:
        """A stub with its complete message, read from the topic; raises ContractViolation if it is gone."""
        place, offsets = (origin.partition, origin.offset), self.offsets.get(origin.partition)
        is_there = offsets is not None and offsets.low <= origin.offset < offsets.end
        original = self.originals.fetch([place]).get(place) if is_there else None
        # A recreated topic has other messages at these offsets.
        if original is None or sha256(original.value or b"").hexdigest() != origin.stub_of:
            text = (
                f"the dead letter holds the beginning only, its message was too large for the dead-letter topic; the "
                f"message is no longer at partition {origin.partition} offset {origin.offset} of {self.topic.name}"
            )
            raise ContractViolation(Reason.too_large, text)
        whole = replace(letter.record, key=original.key, value=original.value)
        return DeadLetterRecord(whole, origin, original.headers)

    def _row(self, letter: DeadLetterRecord, settled: _Settled) -> dict[str, Any]:
        """The row of `replays`."""
        at, origin = letter.record, letter.origin
        return {
            "topic_id": at.topic_id,
            "partition": at.partition,
            "offset": at.offset,
            "topic": self.topic.name,
            **source_columns(letter),
            "reason": origin.reason if origin else None,
            "outcome": settled.outcome,
            "detail": settled.detail or None,
            "repairs": settled.repairs or None,
            "run_id": self.run_id,
        }
