"""The table `replays`: outcomes of dead letters, shared by all replays of a topic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, and_, func, select, text
from sqlalchemy.dialects.postgresql import insert

from include.streams.kafka.dead_letter_records import DeadLetterRecord
from include.streams.operations.database import begin
from include.streams.operations.tables import replays

# (partition, offset, timestamp, consumer), see `RecordHeaders.source`.
Source = tuple[int, int, str, str]


class ReplayOutcome(StrEnum):
    """The outcome of a dead letter in a replay."""

    replayed = "replayed"
    # A dry run would replay it.
    would_replay = "would_replay"
    # An earlier run has replayed it.
    replayed_before = "replayed_before"
    # Another dead letter of the same message was replayed.
    duplicate = "duplicate"
    # The message breaks its contract after all repairs. Every later run tries it again: the code may have changed.
    failing = "failing"
    # The message became a dead letter again after a replay. It is not replayed unless a run has the parameter `again`.
    failed_again = "failed_again"
    # The message passes its contract, but the run has reached its limit.
    over_limit = "over_limit"
    # The record has no `dlq.` headers, or headers that this project did not write.
    unreadable = "unreadable"
    # A person has decided that the message will not be replayed (`settling.py`); the detail is the reason.
    settled = "settled"


# These columns identify the message whose outcome a row holds. The coordinates in the dead-letter topic do not: if the
# log was truncated and filled again, it has other dead letters at these offsets, and so has a recreated topic on a
# broker without topic ids.
_SOURCE = (replays.c.source_partition, replays.c.source_offset, replays.c.source_timestamp, replays.c.consumer)
# The row of a message that was sent must be kept: a second dead letter of the message may still be in the log, or may
# be written later. If another dead letter now has the same offset, the row of the sent message gets another id, in the
# transaction that writes the new row. The time in that id distinguishes rows that had the same offset.
_SET_ASIDE = text(
    """
    update replays set topic_id = topic_id || ' until ' || recorded_at
    where topic_id = :topic_id and "partition" = :partition and "offset" = :offset and outcome = 'replayed'
    and (source_partition, source_offset, source_timestamp, consumer) is distinct from
        (cast(:source_partition as bigint), cast(:source_offset as bigint),
         cast(:source_timestamp as text), cast(:consumer as text))
    """
)
# The outcomes that are recorded for dead letters that were not replayed.
RECORDED = (ReplayOutcome.duplicate, ReplayOutcome.failing, ReplayOutcome.unreadable)

_insert = insert(replays)
_UPSERT = _insert.on_conflict_do_update(
    index_elements=[replays.c.topic_id, replays.c.partition, replays.c.offset],
    set_={
        **{column.name: _insert.excluded[column.name] for column in _SOURCE},
        **{name: _insert.excluded[name] for name in ("topic", "reason", "outcome", "detail", "repairs", "run_id")},
        "recorded_at": func.now(),
    },
    # A task that Airflow has declared dead may still run at the same time as its retry, with outdated outcomes. And a
    # person may settle a dead letter while a replay runs.
    where=and_(replays.c.outcome != ReplayOutcome.replayed, replays.c.outcome != ReplayOutcome.settled),
).returning(replays.c.offset)
# The arrays are unnested, so that each message is looked up in the index of its coordinates.
_REPLAYED = text(
    """
    select source_partition, source_offset, source_timestamp, consumer
    from unnest(cast(:partitions as bigint[]), cast(:offsets as bigint[])) as asked (asked_partition, asked_offset)
    join replays on source_partition = asked_partition and source_offset = asked_offset
    where topic = :topic and outcome = 'replayed'
    """
)


def count_replayed(topic_id: str, run_id: str) -> int:
    """The number of messages that a run has sent, in all tries of its task.

    Args:
        topic_id: The identity of the dead-letter topic's log.
        run_id: The run.
    """
    of_run = select(func.count()).where(
        replays.c.topic_id == topic_id, replays.c.run_id == run_id, replays.c.outcome == ReplayOutcome.replayed
    )
    with begin() as connection:
        return connection.scalar(of_run) or 0


def look_up(topic: str, letters: Sequence[DeadLetterRecord]) -> tuple[dict[int, Row], set[Source]]:
    """Look up what earlier runs and tries have recorded about dead letters.

    Args:
        topic: The topic to which the messages are sent.
        letters: Dead letters of one partition, in offset order.

    Returns:
        {offset: row} of the dead letters that have a row, without rows of other dead letters that had these offsets
        before; and the sources of replayed messages. These include messages that were replayed before the dead-letter
        topic was recreated or its log was truncated.
    """
    if not letters:
        return {}, set()
    first, last = letters[0].record, letters[-1].record
    rows = select(replays).where(
        replays.c.topic_id == first.topic_id,
        replays.c.partition == first.partition,
        replays.c.offset.between(first.offset, last.offset),
    )
    sources = [letter.origin.source for letter in letters if letter.origin and letter.origin.source]
    parameters = {"topic": topic, "partitions": [s[0] for s in sources], "offsets": [s[1] for s in sources]}
    source_at = {letter.record.offset: tuple(source_columns(letter).values()) for letter in letters}
    with begin() as connection:
        known = {
            row.offset: row
            for row in connection.execute(rows)
            if source_at.get(row.offset) == tuple(row._mapping[column] for column in _SOURCE)
        }
        return known, {tuple(row) for row in connection.execute(_REPLAYED, parameters)}  # type: ignore[misc]


def source_columns(letter: DeadLetterRecord) -> dict[str, Any]:
    """The values of the columns that identify the message of a dead letter.

    Args:
        letter: The dead letter.

    Returns:
        {column: value}; all values are None for a record without the `dlq.` headers of this project.
    """
    origin = letter.origin
    values = (origin.partition, origin.offset, origin.timestamp, origin.consumer) if origin else (None,) * len(_SOURCE)
    return {column.name: value for column, value in zip(_SOURCE, values, strict=True)}


def row_of(
    topic: str,
    letter: DeadLetterRecord,
    outcome: ReplayOutcome,
    run_id: str,
    *,
    detail: str | None = None,
    repairs: str | None = None,
) -> dict[str, Any]:
    """The row of the table for a dead letter.

    Args:
        topic: The topic to which its message belongs.
        letter: The dead letter.
        outcome: Its outcome.
        run_id: The run that determines the outcome.
        detail: Why the message still fails, or why it will not be replayed.
        repairs: The names of the repairs.
    """
    dead, origin = letter.record, letter.origin
    return {
        "topic_id": dead.topic_id,
        "partition": dead.partition,
        "offset": dead.offset,
        "topic": topic,
        **source_columns(letter),
        "reason": origin.reason if origin else None,
        "outcome": outcome,
        "detail": detail or None,
        "repairs": repairs or None,
        "run_id": run_id,
    }


def record(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Record outcomes of dead letters; waits for another process that records one of them at the same time.

    If another dead letter now has the offset of a message that was sent, the row of that message is kept under another
    id.

    Args:
        connection: A connection in a transaction.
        rows: Rows of the table, in offset order: two processes that lock rows in different orders would deadlock.

    Returns:
        Whether a row was written. Rows of replayed and of settled dead letters are not overwritten.
    """
    connection.execute(_SET_ASIDE, rows)
    return bool(connection.execute(_UPSERT, rows).all())
