"""The table `replays`, as one try of a replay uses it."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from include.kafka.replay_letters import Letter, Look
from include.operations.database import begin
from include.operations.tables import replays


class Known(NamedTuple):
    """What an earlier look at a dead letter has recorded."""

    outcome: str
    detail: str | None
    repairs: str | None
    run_id: str


class Records:
    """What is known of one topic's dead letters: read once, written with every change.

    Read once, because a run looks at every dead letter that there is, and most were settled by earlier runs.
    """

    def __init__(self, topic: str, topic_id: str) -> None:
        """`topic_id` is the dead-letter topic's."""
        self._topic = topic
        self._topic_id = topic_id
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
        return self._known.get((letter.record.partition, letter.record.offset))

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

    def write(self, letter: Letter, *, outcome: str, detail: str, repairs: str, run_id: str) -> None:
        """Record a look. What is known already is not written again: a thousand that still fail are a thousand rows."""
        record, envelope = letter.record, letter.envelope
        coordinates = record.partition, record.offset
        known = self._known.get(coordinates)
        if known and (known.outcome, known.detail or "") == (outcome, detail):
            return
        row = {
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
        changed = {name: row[name] for name in ("outcome", "detail", "repairs", "run_id")}
        statement = insert(replays).values(row)
        statement = statement.on_conflict_do_update(
            index_elements=[replays.c.topic_id, replays.c.partition, replays.c.offset],
            set_={**changed, "recorded_at": func.now()},
            # A task that Airflow has given up may still run beside its retry, with what it read before.
            where=replays.c.outcome != Look.replayed,
        )
        with begin() as connection:
            connection.execute(statement)
        self._known[coordinates] = Known(outcome, detail or None, repairs or None, run_id)
        if outcome == Look.replayed:
            self.remember(letter)
