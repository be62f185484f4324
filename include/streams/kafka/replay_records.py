"""Access to the table `replays` for one attempt at a replay."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert

from include.streams.kafka.replay_letters import Letter, Look
from include.streams.operations.database import begin
from include.streams.operations.tables import replays

# Dead letters that stay are recorded in batches: one transaction each would take minutes for ten thousand of them. If
# a task is killed before it writes a batch, its retry determines these outcomes again.
MAX_PENDING = 500


# These columns say whose outcome a row holds. The coordinates in the dead-letter topic do not: a log that lost its end
# and was filled again has other dead letters there, and so has a recreated topic on a broker without topic ids.
_SOURCE = (replays.c.source_partition, replays.c.source_offset, replays.c.source_timestamp, replays.c.consumer)


class Known(NamedTuple):
    """The recorded outcome of a dead letter, and the source of its message."""

    source: tuple
    outcome: str
    detail: str | None
    repairs: str | None
    run_id: str


# That a message was sent stays on record: a second dead letter of it may still be in the log, or come. So its row makes
# room for the row of the letter that has its offset now, in the transaction that writes that row. The time in the
# new id tells rows apart that had the same offset one after another.
_SET_ASIDE = text(
    """
    update replays set topic_id = topic_id || ' until ' || recorded_at
    where topic_id = :topic_id and "partition" = :partition and "offset" = :offset and outcome = 'replayed'
    and (source_partition, source_offset, source_timestamp, consumer) is distinct from
        (cast(:source_partition as bigint), cast(:source_offset as bigint),
         cast(:source_timestamp as text), cast(:consumer as text))
    """
)


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
        # Includes outcomes from before the dead-letter topic was recreated, or its log was cut.
        sent = select(*_SOURCE).where(replays.c.topic == topic, replays.c.outcome == Look.replayed)
        with begin() as connection:
            self._known = {
                (row.partition, row.offset): Known(
                    (row.source_partition, row.source_offset, row.source_timestamp, row.consumer),
                    row.outcome,
                    row.detail,
                    row.repairs,
                    row.run_id,
                )
                for row in connection.execute(known)
            }
            self._replayed: set[tuple] = {tuple(row) for row in connection.execute(sent)}

    def find(self, letter: Letter) -> Known | None:
        """The outcome of this dead letter; None when none is recorded, or only one of another letter at its offset."""
        known = self._known.get(self._coordinates(letter))
        return known if known and known.source == self._source(letter) else None

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
        known = Known(self._source(letter), Look.replayed, None, repairs or None, run_id)
        self._known[self._coordinates(letter)] = known
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
        known = self.find(letter)
        if known and (known.outcome, known.detail or "") == (outcome, detail):
            return
        self._pending.append(self._row(letter, outcome, detail, "", run_id))
        self._known[self._coordinates(letter)] = Known(self._source(letter), outcome, detail or None, None, run_id)
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
        changing = (*(column.name for column in _SOURCE), "topic", "reason", "outcome", "detail", "repairs", "run_id")
        statement = statement.on_conflict_do_update(
            index_elements=[replays.c.topic_id, replays.c.partition, replays.c.offset],
            set_={**{name: statement.excluded[name] for name in changing}, "recorded_at": func.now()},
            # A task that Airflow has declared dead may still run beside its retry, with outcomes that it read earlier.
            where=replays.c.outcome != Look.replayed,
        )
        # Sorted: two such tasks that write the same rows in different orders would deadlock.
        rows = sorted(rows, key=lambda row: (row["partition"], row["offset"]))
        with begin() as connection:
            connection.execute(_SET_ASIDE, rows)
            connection.execute(statement, rows)

    def _row(self, letter: Letter, outcome: Look, detail: str, repairs: str, run_id: str) -> dict[str, Any]:
        record, envelope = letter.record, letter.envelope
        source_partition, source_offset, source_timestamp, consumer = self._source(letter)
        return {
            "topic_id": self._topic_id,
            "partition": record.partition,
            "offset": record.offset,
            "topic": self._topic,
            "source_partition": source_partition,
            "source_offset": source_offset,
            "source_timestamp": source_timestamp,
            "consumer": consumer,
            "reason": envelope.reason if envelope else None,
            "outcome": outcome,
            "detail": detail or None,
            "repairs": repairs or None,
            "run_id": run_id,
        }

    @staticmethod
    def _coordinates(letter: Letter) -> tuple[int, int]:
        return letter.record.partition, letter.record.offset

    @staticmethod
    def _source(letter: Letter) -> tuple:
        """What `_SOURCE` holds for this letter: also for one without an envelope, or of a message of no topic."""
        envelope = letter.envelope
        if envelope is None:
            return (None,) * len(_SOURCE)
        return envelope.partition, envelope.offset, envelope.timestamp, envelope.consumer
