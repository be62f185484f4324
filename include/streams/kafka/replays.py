"""The table `replays`: the outcomes of dead letters, which all replays of a topic share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, func, select, text
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
    # Breaks its contract after all repairs. Kept; every later run tries it again, because the code may have changed.
    failing = "failing"
    # The message became a dead letter again after a replay. Kept until a run has the parameter `again`.
    failed_again = "failed_again"
    # The message passes its contract, but the run has reached its limit.
    over_limit = "over_limit"
    # No `dlq.` headers, or headers that this project did not write. Kept.
    unreadable = "unreadable"


# These columns say whose outcome a row holds. The coordinates in the dead-letter topic do not: a log that lost its end
# and was filled again has other dead letters there, and so has a recreated topic on a broker without topic ids.
_SOURCE = (replays.c.source_partition, replays.c.source_offset, replays.c.source_timestamp, replays.c.consumer)
# That a message was sent stays on record: a second dead letter of it may still be in the log, or come. So its row makes
# room for the row of the dead letter that has its offset now, in the transaction that writes that row. The time in the
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
# The outcomes that are recorded of dead letters that stay.
RECORDED = (ReplayOutcome.duplicate, ReplayOutcome.failing, ReplayOutcome.unreadable)

_insert = insert(replays)
_UPSERT = _insert.on_conflict_do_update(
    index_elements=[replays.c.topic_id, replays.c.partition, replays.c.offset],
    set_={
        **{column.name: _insert.excluded[column.name] for column in _SOURCE},
        **{name: _insert.excluded[name] for name in ("topic", "reason", "outcome", "detail", "repairs", "run_id")},
        "recorded_at": func.now(),
    },
    # A task that Airflow has declared dead may still run beside its retry, with outcomes that it looked up earlier.
    where=replays.c.outcome != ReplayOutcome.replayed,
)
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
    """The number of messages that the tries of a run have sent.

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
    """Look up what earlier runs and tries have recorded of dead letters.

    Args:
        topic: The topic that the messages go back to.
        letters: Dead letters of one partition, in offset order.

    Returns:
        {offset: row} of those that have a row, without rows of another dead letter that had the offset before; and the
        sources of which any dead letter was replayed, also one in a dead-letter topic that was recreated, or whose log
        was cut, since.
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
    asked = {"topic": topic, "partitions": [s[0] for s in sources], "offsets": [s[1] for s in sources]}
    of_offset = {letter.record.offset: tuple(source_columns(letter).values()) for letter in letters}
    with begin() as connection:
        known = {
            row.offset: row
            for row in connection.execute(rows)
            if of_offset.get(row.offset) == tuple(row._mapping[column] for column in _SOURCE)
        }
        return known, {tuple(row) for row in connection.execute(_REPLAYED, asked)}  # type: ignore[misc]


def source_columns(letter: DeadLetterRecord) -> dict[str, Any]:
    """The columns that say whose outcome a row holds; null for a record without the `dlq.` headers of this project."""
    origin = letter.origin
    values = (origin.partition, origin.offset, origin.timestamp, origin.consumer) if origin else (None,) * len(_SOURCE)
    return {column.name: value for column, value in zip(_SOURCE, values, strict=True)}


def record(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Record outcomes of dead letters; waits for another process that records one of them at the same time.

    A row about a message that was sent stays, under another id, if another dead letter has its offset now.

    Args:
        connection: A connection in a transaction.
        rows: Rows of the table, in offset order: two processes that lock rows in different orders would deadlock.

    Returns:
        Whether anything was written: not for dead letters that are replayed already.
    """
    connection.execute(_SET_ASIDE, rows)
    return connection.execute(_UPSERT, rows).rowcount > 0
