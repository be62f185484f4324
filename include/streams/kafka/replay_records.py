"""Access to the table `replays` for one attempt at a replay."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from include.streams.kafka.replay_letters import Letter, Look
from include.streams.operations.database import begin
from include.streams.operations.tables import replays

# Dead letters that stay are recorded in batches: one transaction each would take minutes for ten thousand of them. If
# a task is killed before it writes a batch, its retry determines these outcomes again.
MAX_PENDING = 500


class Known(NamedTuple):
    """The recorded outcome of a dead letter."""

    outcome: str
    detail: str | None
    repairs: str | None
    run_id: str


class Records:
    """The recorded outcomes of one topic's dead letters.

    All outcomes are read once, because a run processes every dead letter of the topic and most have an outcome from an
    earlier run. New outcomes are written while the run proceeds.
    """

    def __init__(self, topic: str, topic_id: str) -> None:
        """Read the recorded outcomes.

        Args:
            topic: The name of the topic that the messages go back to.
            topic_id: The id of the dead-letter topic.
        """
        self._topic = topic
        self._topic_id = topic_id
        self._pending: list[dict[str, Any]] = []
        known = select(replays).where(replays.c.topic_id == topic_id)
        source = replays.c.source_partition, replays.c.source_offset, replays.c.source_timestamp, replays.c.consumer
        # Includes outcomes from before the dead-letter topic was recreated.
        sent = select(*source).where(replays.c.topic == topic, replays.c.outcome == Look.replayed)
        with begin() as connection:
            self._known = {
                (row.partition, row.offset): Known(row.outcome, row.detail, row.repairs, row.run_id)
                for row in connection.execute(known)
            }
            self._replayed: set[tuple] = {tuple(row) for row in connection.execute(sent)}

    def find(self, letter: Letter) -> Known | None:
        """The outcome of this dead letter; None when none is recorded."""
        return self._known.get(self._coordinates(letter))

    def replayed_by(self, run_id: str) -> int:
        """The number of dead letters that the run has replayed."""
        return sum((known.outcome, known.run_id) == (Look.replayed, run_id) for known in self._known.values())

    def has_replayed(self, letter: Letter) -> bool:
        """Whether a dead letter of the same message was replayed, by this run or an earlier one."""
        return letter.envelope is not None and letter.envelope.source in self._replayed

    def remember(self, letter: Letter) -> None:
        """Treat a dead letter as replayed for the lifetime of this object, without a write to the database."""
        if letter.envelope and letter.envelope.source:
            self._replayed.add(letter.envelope.source)

    def replayed(self, letter: Letter, repairs: str, run_id: str) -> None:
        """Record that the message was sent; call this before the next message is sent.

        Args:
            letter: The dead letter of the message.
            repairs: The names of the repairs, separated by commas.
            run_id: The run that sent it.
        """
        self._write([self._row(letter, Look.replayed, "", repairs, run_id)])
        self._known[self._coordinates(letter)] = Known(Look.replayed, None, repairs or None, run_id)
        self.remember(letter)

    def kept(self, letter: Letter, outcome: Look, detail: str, run_id: str) -> None:
        """Record why a dead letter stays. Written by the next `flush`, or once MAX_PENDING outcomes are pending.

        An outcome that is already recorded is not written again: otherwise ten thousand dead letters that still fail
        would mean ten thousand written rows in every run.

        Args:
            letter: The dead letter.
            outcome: Why it stays.
            detail: A text for people; empty for none.
            run_id: The run that found the outcome.
        """
        known = self._known.get(self._coordinates(letter))
        if known and (known.outcome, known.detail or "") == (outcome, detail):
            return
        self._pending.append(self._row(letter, outcome, detail, "", run_id))
        self._known[self._coordinates(letter)] = Known(outcome, detail or None, None, run_id)
        if len(self._pending) >= MAX_PENDING:
            self.flush()

    def flush(self) -> None:
        """Write the pending outcomes of `kept`."""
        self._write(self._pending)
        self._pending = []

    def _write(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        statement = insert(replays)
        changing = ("outcome", "detail", "repairs", "run_id")
        statement = statement.on_conflict_do_update(
            index_elements=[replays.c.topic_id, replays.c.partition, replays.c.offset],
            set_={**{name: statement.excluded[name] for name in changing}, "recorded_at": func.now()},
            # A task that Airflow has declared dead may still run beside its retry, with outcomes that it read earlier.
            where=replays.c.outcome != Look.replayed,
        )
        # Sorted: two such tasks that write the same rows in different orders would deadlock.
        rows = sorted(rows, key=lambda row: (row["partition"], row["offset"]))
        with begin() as connection:
            connection.execute(statement, rows)

    def _row(self, letter: Letter, outcome: Look, detail: str, repairs: str, run_id: str) -> dict[str, Any]:
        record, envelope = letter.record, letter.envelope
        return {
            "topic_id": self._topic_id,
            "partition": record.partition,
            "offset": record.offset,
            "topic": self._topic,
            "source_partition": envelope.partition if envelope else None,
            "source_offset": envelope.offset if envelope else None,
            "source_timestamp": envelope.timestamp if envelope else None,
            "consumer": envelope.consumer if envelope else None,
            "reason": envelope.reason if envelope else None,
            "outcome": outcome,
            "detail": detail or None,
            "repairs": repairs or None,
            "run_id": run_id,
        }

    @staticmethod
    def _coordinates(letter: Letter) -> tuple[int, int]:
        return letter.record.partition, letter.record.offset
