"""Replay: send dead letters that now pass their contract back to their topic.

A replay has three steps, each a task: `plan_replay` checks the parameters and records the offsets to read to;
`ConsumeFromTopicOperator` reads the dead-letter topic and calls `replay_dead_letter` with every record; `show` logs the
outcomes.

The operator can only read a topic from its beginning, so `replay_dead_letter` enforces the window and the limit.
Nothing is committed to Kafka: the table `replays` holds the progress. The operator treats silence as the end of the
topic. So `replay_dead_letter` returns a report only when every partition was read to its planned end, and
`require_report` fails the task without a report.

A message is sent, acknowledged, then recorded. A task that is killed in between sends the message again with the same
event id, and the inbox of each consumer ensures that it has one effect.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from pkgutil import resolve_name
from typing import Any

from include.streams.contracts import ContractViolation, Reason, Registry
from include.streams.contracts.repairs import Mended, Repairs
from include.streams.kafka.messages import Message
from include.streams.kafka.producer import AcknowledgedProducer, Headers, own_refusal
from include.streams.kafka.replay_letters import Envelope, Letter, Look, size_bytes
from include.streams.kafka.replay_plan import DEAD_LETTERS_CONN_ID, Plan, look

log = logging.getLogger(__name__)

# Rows in the report, which passes through XCom, a row of Airflow's database. The report's counts cover all records.
MAX_ROWS = 100


class ReplayIncomplete(Exception):
    """The dead-letter topic was not read to its planned end; a retry may read it to its end."""


def replay_dead_letter(record: Any, *, plan: dict[str, Any], conn_id: str) -> dict[str, Any] | None:
    """Process one record of the dead-letter topic; the operator's `apply_function`.

    Args:
        record: A record of the client, or its report that a partition was read to its end.
        plan: The fields of a `Plan`, from `plan_replay`.
        conn_id: The Airflow connection of the dead-letter topic's consumer.

    Returns:
        The report when this was the last planned record; None for every other record.

    Raises:
        KafkaException: The broker failed; Airflow retries the task.
        SQLAlchemyError: The database failed; Airflow retries the task.
        AirflowFailException: The dead-letter topic was recreated after the plan was made; Airflow does not retry.
    """
    return _replay_of(json.dumps(plan, sort_keys=True), conn_id).take(record)


@lru_cache(maxsize=1)
def _replay_of(plan: str, conn_id: str) -> Replay:
    """The `Replay` of this process, kept between records: one task process is one attempt at one plan.

    The operator offers no other place for state that must outlive one record.
    """
    return Replay(Plan.model_validate_json(plan), conn_id)


def require_report(context: Any, result: Sequence[dict[str, Any]] | None) -> None:
    """Raise ReplayIncomplete without a report; the operator's `post_execute`.

    Without this check, the operator succeeds even when it has read nothing.

    Args:
        context: The Airflow context (not used).
        result: The operator's return value: the reports, at most one.
    """
    if not result:
        raise ReplayIncomplete(
            "the dead-letter topic was not read to its end: the broker did not answer in time, or another member of "
            f"the same consumer group has its partitions (group.id of the connection {DEAD_LETTERS_CONN_ID} must be "
            "this deployment's alone)"
        )


def show(reports: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Log the report as a table and return it.

    Args:
        reports: The reports of the mapped operator: exactly one task instance with one report.
    """
    ((report,),) = reports
    log.info("%s", as_table(report))
    return report


def as_table(report: Mapping[str, Any]) -> str:
    """Format a report as text for people."""
    title = "nothing was changed: dry run" if report["dry_run"] else "done"
    lines = [f"dead letters of {report['topic']} ({title})", ""]
    lines += _columns(report["counts"], ("reason", "outcome", "letters"))
    if report["letters"]:
        names = ("dead_letter", "message", "reason", "outcome", "repairs", "detail")
        lines += ["", *_columns(report["letters"], names)]
        more = sum(row["letters"] for row in report["counts"]) - len(report["letters"])
        lines += [f"and {more} more"] if more else []
    return "\n".join(lines)


def _columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    # Values by name, because XCom does not keep the order of a row's fields.
    cells = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


class Replay:
    """One attempt at a plan: processes the records of the dead-letter topic one by one."""

    def __init__(self, plan: Plan, dead_letters_conn_id: str) -> None:
        from include.streams.kafka.replay_originals import OriginalReader
        from include.streams.kafka.replay_records import Records

        self._plan = plan
        self._selection = plan.selection
        registry: Registry = resolve_name(plan.registry)
        self._topic = registry[plan.selection.topic]
        self._repairs: Repairs = resolve_name(plan.repairs) if plan.repairs else Repairs()
        topic_id, _, _ = look(self._topic, dead_letters_conn_id)
        if topic_id != plan.topic_id:
            raise _final(f"{self._topic.dead_letter_name} was deleted and made again after this replay was planned")
        self._records = Records(self._topic.name, plan.topic_id)
        self._producer = AcknowledgedProducer(plan.conn_id)
        self._originals = OriginalReader(plan.conn_id)
        # The next offset of each partition. After a rebalance, reading starts again at the beginning.
        self._positions = dict.fromkeys(plan.ends, 0)
        # Includes the messages that earlier tries of this task have sent: the limit applies to the run.
        self._sent = self._records.replayed_by(plan.run_id)
        self._counts: Counter[tuple[str, Look]] = Counter()
        self._rows: list[dict[str, Any]] = []

    def take(self, record: Any) -> dict[str, Any] | None:
        """Process a record, or the client's report that a partition was read to its end.

        Returns:
            The report when every partition has been read to its planned end; None before and after that.
        """
        if self._is_done:
            # The operator continues until it has its number of messages; this record was written after the plan.
            return None
        self._look_at(record)
        if not self._is_done:
            return None
        self._records.flush()
        return self._report()

    @property
    def _is_done(self) -> bool:
        return all(self._positions[partition] >= end for partition, end in self._plan.ends.items())

    def _look_at(self, record: Any) -> None:
        from confluent_kafka import KafkaError, KafkaException

        error = record.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        partition, offset = record.partition(), record.offset()
        if partition not in self._positions:
            return
        position = self._positions[partition]
        if error is None and position <= offset < self._plan.ends[partition]:
            message = Message.of(record, self._plan.topic_id)
            letter = Letter.of(message, self._topic.name)
            if self._selection.takes(message.timestamp, letter.envelope):
                self._settle(letter)
        # The offset of an end report is the position after any offsets without a record.
        self._positions[partition] = max(position, offset if error is not None else offset + 1)

    def _settle(self, letter: Letter) -> None:
        outcome, repairs, detail = self._try(letter)
        reason = letter.envelope.reason if letter.envelope else ""
        self._counts[reason, outcome] += 1
        at, source = letter.record, letter.envelope
        shown = outcome is not Look.replayed_before and len(self._rows) < MAX_ROWS
        if shown or outcome is Look.replayed:
            log.info("%s: dead_letter=%s reason=%s repairs=%s detail=%s", outcome, at, reason, repairs, detail)
        if shown:
            self._rows.append(
                {
                    "dead_letter": f"{at.partition}@{at.offset}",
                    "message": f"{source.partition}@{source.offset}" if source and source.was_on_the_topic else "",
                    "reason": reason,
                    "outcome": outcome,
                    "repairs": repairs,
                    "detail": detail,
                }
            )

    def _try(self, letter: Letter) -> tuple[Look, str, str]:
        """(outcome, names of the repairs, reason for which the message still fails)"""
        known = self._records.find(letter)
        if known and known.outcome == Look.replayed:
            # An earlier try of this task, or the task before its run was cleared, belongs to this run too.
            by_this_run = known.run_id == self._plan.run_id
            return (Look.replayed, known.repairs or "", "") if by_this_run else (Look.replayed_before, "", "")
        if (envelope := letter.envelope) is None:
            return self._keep(letter, Look.unreadable, "")
        if self._records.has_replayed(letter):
            return self._keep(letter, Look.duplicate, "")
        if letter.replays and not self._selection.again:
            return Look.failed_again, "", f"replayed {letter.replays} times; set `again` to replay it again"
        try:
            letter = self._whole(letter)
            mended = self._repairs.mend(self._topic, letter.record.value)
            key = self._key(letter, mended)
            headers = letter.headers_for_replay(self._topic.name, self._plan.run_id)
            self._check_size(key, mended.value, headers)
        except ContractViolation as violation:
            return self._keep(letter, Look.failing, f"{violation.reason}: {violation.detail}")
        repairs = ", ".join(mended.repairs)
        if self._sent >= self._selection.limit:
            return Look.over_limit, repairs, ""
        self._sent += 1
        if self._selection.dry_run:
            self._records.remember(letter)
            return Look.would_replay, repairs, ""
        try:
            self._send(key, mended.value, headers, envelope)
        except Exception as error:
            if (refusal := own_refusal(error)) is None:
                raise
            # The topic's settings have changed: a lower limit, or compaction, which takes no record without a key. A
            # retry would fail at this record again and never reach the next one.
            self._sent -= 1
            reason = Reason.too_large if refusal.is_size else Reason.rejected
            return self._keep(letter, Look.failing, f"{reason}: topic {self._topic.name} refuses it ({refusal.code})")
        self._records.replayed(letter, repairs, self._plan.run_id)
        return Look.replayed, repairs, ""

    def _whole(self, letter: Letter) -> Letter:
        """The dead letter with its complete message: the original of a stub is read from the topic.

        Raises ContractViolation when the topic no longer holds the original.
        """
        envelope = letter.envelope
        if envelope is None or envelope.stub_of is None:
            return letter
        original = self._originals.find(self._topic.name, envelope.partition, envelope.offset)
        if original is None or sha256(original.value or b"").hexdigest() != envelope.stub_of:
            text = (
                f"the letter holds the beginning only, its message was too large for the dead-letter topic; the "
                f"message is no longer at partition {envelope.partition} offset {envelope.offset} of {self._topic.name}"
            )
            raise ContractViolation(Reason.too_large, text)
        record = replace(letter.record, key=original.key, value=original.value)
        return Letter(record, envelope, original.headers)

    def _send(self, key: bytes | None, value: bytes, headers: Headers, envelope: Envelope) -> None:
        # To the message's original partition: messages with one key belong in one partition, and a producer in another
        # language may map keys to partitions differently.
        known = 0 <= envelope.partition < self._plan.partitions
        self._producer.send(
            self._topic.name, key=key, value=value, headers=headers, partition=envelope.partition if known else None
        )
        self._producer.flush()

    def _keep(self, letter: Letter, outcome: Look, detail: str) -> tuple[Look, str, str]:
        if not self._selection.dry_run:
            self._records.kept(letter, outcome, detail, self._plan.run_id)
        return outcome, "", detail

    def _key(self, letter: Letter, mended: Mended) -> bytes | None:
        """The original's key. If the letter does not have it, the topic's key field gives the key.

        As for a message that never was on the topic, or was no longer there: the landing table keeps no keys.
        """
        if letter.envelope and letter.envelope.was_on_the_topic and not letter.envelope.landed_text:
            return letter.record.key
        return str(getattr(mended.event, self._topic.key)).encode()

    def _check_size(self, key: bytes | None, value: bytes, headers: Headers) -> None:
        """Reject a message above the topic's limit: the broker would refuse it at every retry, and the run would fail.

        Raises ContractViolation.
        """
        limit = int(self._topic.kafka_config()["max.message.bytes"])
        if (size := size_bytes(key, value, headers)) > limit:
            raise ContractViolation(Reason.too_large, f"{size} bytes with its headers, the topic takes {limit}")

    def _report(self) -> dict[str, Any]:
        counts = sorted(self._counts.items())
        return {
            "topic": self._topic.name,
            "dry_run": self._selection.dry_run,
            "counts": [{"reason": reason, "outcome": outcome, "letters": n} for (reason, outcome), n in counts],
            "letters": self._rows,
        }


def _final(text: str) -> Exception:
    """A failure that Airflow does not retry, because only a person can fix it."""
    from airflow.sdk.exceptions import AirflowFailException

    return AirflowFailException(text)
