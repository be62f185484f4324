"""Replay: send dead letters that now pass their contract back to their topic.

A replay has two tasks: `plan_replay` records the offset ranges to read, and `replay` reads exactly these. Dead letters
that were not replayed lie between replayed ones. So every run reads all dead letters, and the table `replays` says
which are replayed.

A message is sent while the row that records it is written but not committed. Killed before the commit: the retry sends
the message again, with the same event id, and the inbox of each consumer ensures that it has one effect. Killed after
the commit: the retry skips the message. Two processes at once: the second waits for the row, then skips the message.
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
    row_of,
)
from include.streams.kafka.xcom import TopicRange, as_range
from include.streams.operations.audit import Actor, repair_services
from include.streams.operations.database import begin

log = logging.getLogger(__name__)

# The group name that the broker sees. No client joins this group or commits offsets for it.
GROUP = "replay_dead_letters"
# The most dead letters in the report: it passes through XCom, a row of Airflow's database. The counts cover all of
# them.
MAX_ROWS = 100


class Count(TypedDict):
    """How many dead letters with this reason had this outcome."""

    reason: str
    outcome: str
    count: int


class Row(TypedDict):
    """One dead letter of the report.

    `dead_letter` and `message` are "partition@offset" of its record and of its message; the latter is empty if the
    message was never on the topic.
    """

    dead_letter: str
    message: str
    reason: str
    outcome: str
    repairs: str
    detail: str


class ReplayReport(TypedDict):
    """The result of a replay, or of a dry run. It holds no values of messages."""

    topic: str
    dry_run: bool
    counts: list[Count]
    dead_letters: list[Row]


class ReplayImpossible(Exception):
    """A topic or its dead-letter topic cannot be read completely; the text says what to do."""


def plan_replay(params: Mapping[str, Any], topics: Registry, *, conn_id: str = CONN_ID) -> list[TopicRange]:
    """Check the parameters of a replay, and determine the offsets that each try of its task reads.

    Args:
        params: The fields of a `Selection`.
        topics: The project's topics.
        conn_id: The Airflow connection of the broker.

    Returns:
        The offset ranges of all records that are in the dead-letter topic now.

    Raises:
        ValidationError: Pydantic rejects the parameters.
        AirflowSkipException: There are no dead letters.
        ReplayImpossible: A topic is missing; Airflow retries the task.
        KafkaException: The broker did not answer; Airflow retries the task.
    """
    from airflow.sdk.exceptions import AirflowSkipException

    selection = Selection.model_validate(params)
    topic = topics[selection.topic]
    with GroupOffsets(GROUP, conn_id) as group:
        _, dead = replay_extent(group, topic)
    ranges = ranges_of(topic, dead, selection)
    if not ranges:
        raise AirflowSkipException(f"{topic.dead_letter_name} is empty, or has none of these dead letters")
    log.info("dead letters of %s: %s", topic.name, [str(wanted) for wanted in ranges])
    return [as_range(wanted) for wanted in ranges]


def replay(
    ranges: Sequence[TopicRange],
    params: Mapping[str, Any],
    run_id: str,
    *,
    topics: Registry,
    repairs: Repairs,
    by: Actor | None = None,
    conn_id: str = CONN_ID,
) -> ReplayReport:
    """Process the selected dead letters of the ranges, and log the report as a table.

    Args:
        ranges: The return value of `plan_replay`.
        params: The fields of a `Selection`.
        run_id: The Dag run's id.
        topics: The project's topics.
        repairs: The repairs of their messages.
        by: Who replays; None for a run without a record, which a Dag file of an earlier release has started.
        conn_id: The Airflow connection of the broker.

    Returns:
        The report.

    Raises:
        AirflowFailException: The dead-letter topic was recreated after the plan was made; Airflow does not retry.
        Exception: An error of the broker or the database; Airflow retries the task, which continues where it stopped.
    """
    selection = Selection.model_validate(params)
    reports: list[ReplayReport] = []

    def work() -> list[str]:
        reports.append(_replay(ranges, selection, run_id, topics, repairs, conn_id))
        return [f"{row['count']} {row['outcome']} ({row['reason']})" for row in reports[-1]["counts"]] or ["none"]

    if by is None:
        work()
    else:
        given = selection.model_dump(mode="json", exclude={"why", "reason"})
        recorded = {**given, "letter_reason": selection.reason, "reason": selection.why or "not given"}
        # Repeated if the run is cleared: the table `replays` shows what it has sent.
        repair_services("replay_dead_letters", recorded, by, work, repeats=True)
    return reports[-1]


def _replay(
    ranges: Sequence[TopicRange], selection: Selection, run_id: str, topics: Registry, repairs: Repairs, conn_id: str
) -> ReplayReport:
    from airflow.sdk.exceptions import AirflowFailException

    topic = topics[selection.topic]
    with GroupOffsets(GROUP, conn_id, **CONSUMER_SETTINGS) as group, AcknowledgedProducer(conn_id) as producer:
        original, dead = replay_extent(group, topic)
        (planned,) = {wanted["topic_id"] for wanted in ranges}
        if {offsets.topic_id for offsets in dead.values()} != {planned}:
            raise AirflowFailException(f"{topic.dead_letter_name} was recreated after this replay was planned")
        (topic_id,) = {offsets.topic_id for offsets in original.values()}
        with Originals(topic.name, topic_id, group=GROUP, conn_id=conn_id) as originals:
            sent = count_replayed(planned, run_id)
            attempt = _Replay(selection, topic, original, originals, producer, repairs, run_id, sent)
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
        group: Fetches the offsets.
        topic: The topic.

    Returns:
        {partition: offsets} of the topic, and of its dead-letter topic.

    Raises:
        ReplayImpossible: A topic is missing or incomplete.
        KafkaException: The broker did not answer.
    """
    names = topic.name, topic.dead_letter_name
    current = group.fetch_offsets_sync(names, needs_committed=False)
    original, dead = (
        {partition.number: offsets for partition, offsets in current.items() if partition.topic == name}
        for name in names
    )
    if group.incomplete or not original or not dead:
        raise ReplayImpossible(
            f"topic {topic.name} or {topic.dead_letter_name} does not exist, may not be read, or has no leader: run "
            "prepare_services, grant READ on both topics, or wait for the broker"
        )
    return original, dead


def ranges_of(topic: Topic, dead: Mapping[int, PartitionOffsets], selection: Selection) -> list[OffsetRange]:
    """The offsets of the dead-letter topic to read.

    Args:
        topic: The topic.
        dead: {partition: offsets} of its dead-letter topic.
        selection: Which dead letters are wanted. If it names dead letters, only the offsets from the first to the last
            of each partition are read.

    Returns:
        The ranges, without empty ones.
    """
    ranges = []
    for partition, offsets in sorted(dead.items()):
        low, end = offsets.low, offsets.end
        if (named := selection.places) is not None:
            wanted = [offset for number, offset in named if number == partition]
            low, end = (max(low, min(wanted)), min(end, max(wanted) + 1)) if wanted else (0, 0)
        if low < end:
            ranges.append(OffsetRange(topic.dead_letter_name, offsets.topic_id, partition, low, end))
    return ranges


def as_table(report: Mapping[str, Any]) -> str:
    """Format a report as text for people.

    Args:
        report: A `ReplayReport`.
    """
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


class _Result(NamedTuple):
    """The outcome of a dead letter, the names of the repairs, and the reason for which the message still fails."""

    outcome: ReplayOutcome
    repairs: str = ""
    detail: str = ""


_REPLAYED_BEFORE = _Result(ReplayOutcome.replayed_before)


@dataclass
class _Replay:
    """One try of a replay: processes dead letters, and counts their outcomes."""

    selection: Selection
    topic: Topic
    # {partition: offsets} of the topic to which messages are sent, not of its dead-letter topic.
    offsets: Mapping[int, PartitionOffsets]
    originals: Originals
    producer: AcknowledgedProducer
    repairs: Repairs
    run_id: str
    # The number of messages that this run, including its earlier tries, has sent or would send.
    sent: int
    # The messages of which a dead letter was replayed, or would be.
    done: set[Source] = field(default_factory=set)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    rows: list[Row] = field(default_factory=list)

    def process(self, batch: Iterable[Message]) -> None:
        """Process records of one partition of the dead-letter topic, in offset order.

        The outcomes of dead letters that are not replayed are recorded at the end: the retry of a killed task
        determines them again.
        """
        letters = self.selection.of(DeadLetterRecord.of(record, self.topic.name) for record in batch)
        known, done = look_up(self.topic.name, letters)
        self.done |= done
        changed = []
        for letter in letters:
            row = known.get(letter.record.offset)
            result = self._process_one(letter, row)
            self._count(letter, result)
            # An unchanged outcome is not recorded again: ten thousand dead letters that still fail would cause ten
            # thousand updates in every run.
            is_changed = row is None or (row.outcome, row.detail or "") != (result.outcome, result.detail)
            if result.outcome in RECORDED and is_changed:
                changed.append(self._row(letter, result))
        if changed and not self.selection.dry_run:
            with begin() as connection:
                record(connection, changed)

    def report(self) -> ReplayReport:
        """The counts of all processed dead letters, and the first MAX_ROWS that no earlier run has replayed."""
        counts = [Count(reason=r, outcome=outcome, count=n) for (r, outcome), n in sorted(self.counts.items())]
        dry_run = self.selection.dry_run
        return ReplayReport(topic=self.topic.name, dry_run=dry_run, counts=counts, dead_letters=self.rows)

    def _count(self, letter: DeadLetterRecord, result: _Result) -> None:
        record, origin = letter.record, letter.origin
        reason = str(origin.reason) if origin else ""
        self.counts[reason, result.outcome] += 1
        is_over = result.outcome in (ReplayOutcome.replayed_before, ReplayOutcome.settled)
        if not is_over and len(self.rows) < MAX_ROWS:
            dead_letter = f"{record.partition}@{record.offset}"
            message = f"{origin.partition}@{origin.offset}" if origin and origin.was_on_the_topic else ""
            self.rows.append(Row(dead_letter=dead_letter, message=message, reason=reason, **result._asdict()))

    def _process_one(self, letter: DeadLetterRecord, known: Any) -> _Result:
        """Send the message of a dead letter if it passes its contract; `known` is its row in `replays`, or None."""
        if known is not None and known.outcome == ReplayOutcome.replayed:
            # It may have been an earlier try of this task, or this task before its run was cleared.
            by_this_run = known.run_id == self.run_id
            return _Result(ReplayOutcome.replayed, known.repairs or "") if by_this_run else _REPLAYED_BEFORE
        if known is not None and known.outcome == ReplayOutcome.settled:
            return _Result(ReplayOutcome.settled, detail=known.detail or "")
        if letter.origin is None:
            return _Result(ReplayOutcome.unreadable)
        if letter.origin.source in self.done:
            return _Result(ReplayOutcome.duplicate)
        if letter.replays and not self.selection.again:
            detail = f"replayed {letter.replays} times; set `again` to replay it again"
            return _Result(ReplayOutcome.failed_again, detail=detail)
        try:
            outgoing, repairs = self._outgoing(letter, letter.origin)
        except ContractViolation as violation:
            return _Result(ReplayOutcome.failing, detail=f"{violation.reason}: {violation.detail}")
        except NotWanted:
            detail = "not wanted: no contract of the topic's union takes its type"
            return _Result(ReplayOutcome.failing, detail=detail)
        if self.sent >= self.selection.limit:
            return _Result(ReplayOutcome.over_limit, repairs)
        if self.selection.dry_run:
            result = _Result(ReplayOutcome.would_replay, repairs)
        else:
            result = self._send(letter, outgoing, _Result(ReplayOutcome.replayed, repairs))
        if result.outcome in (ReplayOutcome.replayed, ReplayOutcome.would_replay):
            self.sent += 1
            if (source := letter.origin.source) is not None:
                self.done.add(source)
        return result

    def _send(self, letter: DeadLetterRecord, outgoing: OutgoingRecord, replayed: _Result) -> _Result:
        try:
            with begin() as connection:
                if not record(connection, [self._row(letter, replayed)]):
                    return _REPLAYED_BEFORE
                self.producer.send(**outgoing._asdict())
                self.producer.flush()
        except Exception as error:
            if (refusal := record_refusal(error)) is None:
                raise
            # The topic's settings have changed: a lower size limit, or compaction, which accepts no record without a
            # key. A retry would fail at this record again and never reach the next one.
            reason = Reason.too_large if refusal.is_size_error else Reason.rejected
            detail = f"{reason}: topic {self.topic.name} refuses it ({refusal.code})"
            return _Result(ReplayOutcome.failing, detail=detail)
        log.info("replayed: dead_letter=%s repairs=%s", letter.record, replayed.repairs)
        return replayed

    def _outgoing(self, letter: DeadLetterRecord, origin: RecordHeaders) -> tuple[OutgoingRecord, str]:
        """The record to send, and the names of its repairs.

        Raises:
            ContractViolation: The message still breaks its contract, or only its stub is left.
            NotWanted: No contract of the topic's union takes its type.
        """
        if origin.stub_of is not None:
            letter = self._complete(letter, origin)
        repaired = self.repairs.apply(self.topic, letter.record.value, letter.headers)
        key = letter.record.key
        if (origin.landed_text or not origin.was_on_the_topic) and self.topic.key is not None:
            # There is no original key, because the landing table has no keys: the key is taken from the event. (A
            # foreign contract may know no field that is the key.)
            key = str(getattr(repaired.event, self.topic.key)).encode()
        headers = letter.headers_for_replay(self.topic.name, self.run_id)
        # To the message's original partition: messages with one key belong in one partition, and a producer in another
        # language may map keys to partitions differently.
        partition = origin.partition if origin.partition in self.offsets else None
        return OutgoingRecord(self.topic.name, key, repaired.value, headers, partition), ", ".join(repaired.repairs)

    def _complete(self, letter: DeadLetterRecord, origin: RecordHeaders) -> DeadLetterRecord:
        """Replace a stub by its complete message, read from the topic; raises ContractViolation if it is gone."""
        coordinates, offsets = (origin.partition, origin.offset), self.offsets.get(origin.partition)
        is_available = offsets is not None and offsets.low <= origin.offset < offsets.end
        original = self.originals.fetch([coordinates]).get(coordinates) if is_available else None
        # A recreated topic has other messages at these offsets.
        if original is None or sha256(original.value or b"").hexdigest() != origin.stub_of:
            text = (
                f"the dead letter holds the beginning only, its message was too large for the dead-letter topic; the "
                f"message is no longer at partition {origin.partition} offset {origin.offset} of {self.topic.name}"
            )
            raise ContractViolation(Reason.too_large, text)
        complete = replace(letter.record, key=original.key, value=original.value)
        return DeadLetterRecord(complete, origin, original.headers)

    def _row(self, letter: DeadLetterRecord, result: _Result) -> dict[str, Any]:
        """The row of `replays`."""
        return row_of(
            self.topic.name, letter, result.outcome, self.run_id, detail=result.detail, repairs=result.repairs
        )
