"""The table `replays`, as one try of a replay uses it."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from include.kafka.replay_letters import Letter, Look
from include.operations.database import begin
from include.operations.tables import replays

# Letters that stay, written together: one transaction each would take minutes for ten thousand of them. What a killed
# task has not written, its retry finds out again.
MAX_PENDING = 500


class Known(NamedTuple):
    """What an earlier look at a dead letter has recorded."""

    outcome: str
    detail: str | None
    repairs: str | None
    run_id: str


class Records:
    """What is known of one topic's dead letters: read once, written as they are looked at.

    Read once, because a run looks at every dead letter that there is, and most were settled by earlier runs.
    """

    def __init__(self, topic: str, topic_id: str) -> None:
        """`topic_id` is the dead-letter topic's."""
        self._topic = topic
        self._topic_id = topic_id
        self._pending: list[dict[str, Any]] = []
        known = select(replays).where(replays.c.topic_id == topic_id)
        source = replays.c.source_partition, replays.c.source_offset, replays.c.source_timestamp, replays.c.consumer
        # Of a dead-letter topic that was made again, too.
        sent = select(*source).where(replays.c.topic == topic, replays.c.outcome == Look.replayed)
        with begin() as connection:
            self._known = {
                (row.partition, row.offset): Known(row.outcome, row.detail, row.repairs, row.run_id)
                for row in connection.execute(known)
            }
            self._replayed: set[tuple] = {tuple(row) for row in connection.execute(sent)}

    def find(self, letter: Letter) -> Known | None:
        """What is recorded of this very dead letter."""
        return self._known.get(self._coordinates(letter))

    def replayed_by(self, run_id: str) -> int:
        """How many dead letters the run has replayed."""
        return sum((known.outcome, known.run_id) == (Look.replayed, run_id) for known in self._known.values())

    def has_replayed(self, letter: Letter) -> bool:
        """Whether a dead letter of the same message was replayed, by this run or an earlier one."""
        return letter.envelope is not None and letter.envelope.source in self._replayed

    def remember(self, letter: Letter) -> None:
        """Take a dead letter for replayed, for as long as this object lives."""
        if letter.envelope and letter.envelope.source:
            self._replayed.add(letter.envelope.source)

    def replayed(self, letter: Letter, repairs: str, run_id: str) -> None:
        """Record that the letter's message was sent, before the next one is."""
        self._write([self._row(letter, Look.replayed, "", repairs, run_id)])
        self._known[self._coordinates(letter)] = Known(Look.replayed, None, repairs or None, run_id)
        self.remember(letter)

    def kept(self, letter: Letter, outcome: Look, detail: str, run_id: str) -> None:
        """Record why a letter stays; in the database after the next `flush`, or once many have come together.

        What is known already is not written again: ten thousand that still fail would be as many rows, in every run.
        """
        known = self._known.get(self._coordinates(letter))
        if known and (known.outcome, known.detail or "") == (outcome, detail):
            return
        self._pending.append(self._row(letter, outcome, detail, "", run_id))
        self._known[self._coordinates(letter)] = Known(outcome, detail or None, None, run_id)
        if len(self._pending) >= MAX_PENDING:
            self.flush()

    def flush(self) -> None:
        """Write what `kept` has gathered."""
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
            # A task that Airflow has given up may still run beside its retry, with what it read before.
            where=replays.c.outcome != Look.replayed,
        )
        # Sorted: two such tasks that write the same rows in different orders would block each other.
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
