"""Settle dead letters that will not be replayed, as a repair by a person; and reopen them.

The row of `replays` then has the outcome `settled`, with the reason. No replay sends such a message, also not a replay
that runs at the same time. The dead letter stays in its topic for as long as that topic keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import delete

from include.streams.contracts import Registry, Topic
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.dead_letter_records import DeadLetterRecord
from include.streams.kafka.offsets import GroupOffsets
from include.streams.kafka.reading import CONSUMER_SETTINGS, RangeReader
from include.streams.kafka.replay import GROUP, ranges_of, replay_extent
from include.streams.kafka.replay_selection import Selection
from include.streams.kafka.replays import ReplayOutcome, look_up, record, row_of
from include.streams.operations.audit import Actor, Refused, RepairParams, RepairReport, one_line, repair_services
from include.streams.operations.database import begin
from include.streams.operations.tables import replays

# Dead letters that the report lists.
MAX_LISTED = 100
# `replays.run_id` of a command.
SHELL = "shell"


class SettleAction(StrEnum):
    """What `settle_dead_letters` does."""

    settle = "settle"
    # Undo it: the next replay tries them again.
    reopen = "reopen"


class SettleDeadLetters(RepairParams):
    """The parameters of `settle_dead_letters`: which dead letters, as for a replay.

    Attributes:
        action: A `SettleAction`.
        topic: The topic whose dead letters are settled.
        letters: Only these, each "partition@offset" in the dead-letter topic; empty for all that the others select.
        letter_reason: Only dead letters with this reason; None for all.
        since: Only messages that became dead letters at this time or later; ISO 8601 with a time zone.
        until: Only messages that became dead letters before this time.
        partition: Only messages that had this partition on their own topic.
        from_offset: Only messages at this offset of that partition or later.
        until_offset: Only messages before this offset of that partition.
    """

    action: str
    topic: str
    letters: list[str]
    letter_reason: str | None
    since: str | None
    until: str | None
    partition: int | None
    from_offset: int | None
    until_offset: int | None


def settle_dead_letters(
    params: SettleDeadLetters, by: Actor, *, topics: Registry, conn_id: str = CONN_ID
) -> RepairReport:
    """Settle dead letters, or reopen settled ones. Replayed dead letters are left out.

    Killed in the middle: some are settled. The retry does the rest.

    Args:
        params: Which dead letters, and what to do.
        by: Who does it.
        topics: The project's topics.
        conn_id: The Airflow connection of the broker.

    Returns:
        The report: the number, and the first of them as "partition@offset" in the dead-letter topic.

    Raises:
        Refused: The reason is empty, or the selection is empty or contradicts itself.
        ReplayImpossible: A topic is missing, or may not be read.
        KafkaException, ReadingStalled: The broker did not answer.
    """
    action, topic, selection = SettleAction(params["action"]), topics[params["topic"]], _selection(params)

    def work() -> list[str]:
        found: list[str] = []
        with GroupOffsets(GROUP, conn_id, **CONSUMER_SETTINGS) as group:
            _, dead = replay_extent(group, topic)
            reader = RangeReader(group.consumer)
            for wanted in ranges_of(topic, dead, selection):
                for batch in reader.read(wanted):
                    letters = selection.of(DeadLetterRecord.of(each, topic.name) for each in batch)
                    found += _process(action, topic, letters, params, by)
        if not found:
            raise Refused(
                f"no dead letter of {topic.name} that is {_BEFORE[action]} is in the selection; the dry run of "
                "replay_dead_letters lists the dead letters"
            )
        more = [f"and {len(found) - MAX_LISTED} more"] if len(found) > MAX_LISTED else []
        return [f"{len(found)} dead letters of {topic.name}: {_AFTER[action]}", *found[:MAX_LISTED], *more]

    return repair_services("settle_dead_letters", params, by, work)


_BEFORE = {SettleAction.settle: "neither replayed nor settled", SettleAction.reopen: "settled"}
_AFTER = {SettleAction.settle: "settled, they will not be replayed", SettleAction.reopen: "reopened"}


def _selection(params: SettleDeadLetters) -> Selection:
    from pydantic import ValidationError

    windows = {name: params[name] for name in ("since", "until", "partition", "from_offset", "until_offset")}
    try:
        selected: dict[str, Any] = {**windows, "reason": params["letter_reason"], "letters": params["letters"]}
        return Selection(topic=params["topic"], **selected)
    except ValidationError as error:
        raise Refused("; ".join(str(each["msg"]) for each in error.errors())) from None


def _process(
    action: SettleAction, topic: Topic, letters: Sequence[DeadLetterRecord], params: SettleDeadLetters, by: Actor
) -> list[str]:
    """Settle or reopen these dead letters of one partition; returns their names."""
    known, _ = look_up(topic.name, letters)
    outcomes = {offset: row.outcome for offset, row in known.items()}
    is_over = (ReplayOutcome.replayed, ReplayOutcome.settled)
    if action is SettleAction.settle:
        chosen = [letter for letter in letters if outcomes.get(letter.record.offset) not in is_over]
    else:
        chosen = [letter for letter in letters if outcomes.get(letter.record.offset) == ReplayOutcome.settled]
    if chosen and not params["dry_run"]:
        with begin() as connection:
            if action is SettleAction.settle:
                detail, run_id = one_line(params["reason"]), by.run_id or SHELL
                rows = [row_of(topic.name, letter, ReplayOutcome.settled, run_id, detail=detail) for letter in chosen]
                record(connection, rows)
            else:
                first = chosen[0].record
                settled = (
                    replays.c.topic_id == first.topic_id,
                    replays.c.partition == first.partition,
                    replays.c.offset.in_([letter.record.offset for letter in chosen]),
                    replays.c.outcome == ReplayOutcome.settled,
                )
                connection.execute(delete(replays).where(*settled))
    return [f"{letter.record.partition}@{letter.record.offset}" for letter in chosen]
