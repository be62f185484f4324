"""Remove what is done and old enough from the operational database.

What is open stays, however old: claims that are not handled, outbox rows that are pending or failed, open alarms. So do
positions.

Rows go in small transactions, oldest first, each found through an index: a prune holds no lock for long, may be killed
at any time, and may run beside itself and beside everything else.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, Table, delete, func, literal_column, select, text

from include.contracts import Topic
from include.contracts.topics import DEAD_LETTER_RETENTION
from include.operations.database import begin
from include.operations.tables import alarms, claims, inbox, outbox, replays

log = logging.getLogger(__name__)

# Rows in one transaction: some milliseconds.
BATCH_ROWS = 1_000
# A message can outlive its topic's retention: Kafka deletes whole segments, and begins one a week by default.
SEGMENT_ROLL = timedelta(days=7)


@dataclass(frozen=True)
class Rule:
    """Rows of `table` go when `column` is older than `kept`, those only for which the condition holds."""

    table: Table
    column: str
    kept: timedelta
    # A constant, so that it matches the condition of the partial index.
    only: str | None = None

    def due(self) -> ColumnElement[bool]:
        old = self.table.c[self.column] < func.now() - self.kept
        return old if self.only is None else old & text(self.only)


class RetentionTooShort(ValueError):
    """Rows would go while they still keep a message from having its effect twice."""


def rules(
    topics: Iterable[Topic], *, inbox_days: int | None, claims_days: int, outbox_days: int, alarms_days: int
) -> list[Rule]:
    """What is pruned, and after how many days; None keeps the inbox for ever. Ranges go with their claims.

    Raises RetentionTooShort when the inbox would not know a message of one of the topics any more that can still come.
    """
    days = timedelta(days=1)
    inbox_rules = []
    if inbox_days is not None:
        check_inbox(inbox_days * days, topics)
        inbox_rules = [Rule(inbox, "recorded_at", inbox_days * days)]
    return [
        *inbox_rules,
        # A replay's progress: without the row, a dead letter that is still there would be replayed once more.
        Rule(replays, "recorded_at", DEAD_LETTER_RETENTION + 2 * SEGMENT_ROLL),
        Rule(claims, "closed_at", claims_days * days, "closed_at is not null"),
        Rule(outbox, "created_at", outbox_days * days, "state in ('delivered', 'skipped')"),
        Rule(alarms, "closed_at", alarms_days * days, "closed_at is not null"),
    ]


def check_inbox(kept: timedelta, topics: Iterable[Topic]) -> None:
    """Raise RetentionTooShort when an inbox row could go before the last message that it must recognise.

    A message that broke its contract is a dead letter for DEAD_LETTER_RETENTION. On the last day of it, a replay may
    send it to its topic again, where it stays for the topic's retention, and is read again if the consumer is reset.
    If the producer had sent the event in another message on the first day, only the inbox tells that it was handled.
    """
    for topic in topics:
        if topic.retention is None:
            raise RetentionTooShort(
                f"topic {topic.name} keeps its messages for ever, so inbox rows must stay for ever too: give it a "
                "retention, or set inbox_days to null"
            )
        # Twice: once for the segment of the dead letter, once for that of the message.
        needed = topic.retention + DEAD_LETTER_RETENTION + 2 * SEGMENT_ROLL
        if kept < needed:
            raise RetentionTooShort(
                f"inbox rows are kept for {kept.days} days, but a message of topic {topic.name} can come for "
                f"{needed.days} days ({DEAD_LETTER_RETENTION.days} as a dead letter, {topic.retention.days} in the "
                f"topic, and twice {SEGMENT_ROLL.days} until Kafka deletes its segment), and would have its effect "
                f"twice: set inbox_days to {needed.days} or more"
            )


def prune(wanted: Iterable[Rule], *, seconds: float, batch_rows: int = BATCH_ROWS) -> dict[str, int]:
    """Remove what is due, for about this long; returns how many rows went, by table. The rest is the next run's."""
    until = time.monotonic() + seconds
    removed: dict[str, int] = {}
    for rule in wanted:
        count = 0
        while time.monotonic() < until:
            gone = _remove_some(rule, batch_rows)
            count += gone
            if gone < batch_rows:
                break
        removed[rule.table.name] = count
        log.info("pruned: table=%s rows=%d older_than_days=%d", rule.table.name, count, rule.kept.days)
    return removed


def _remove_some(rule: Rule, rows: int) -> int:
    ctid = literal_column("ctid")
    # skip locked: what somebody holds is theirs, a second prune for instance; it waits for the next time.
    some = (
        select(ctid).select_from(rule.table).where(rule.due()).order_by(rule.table.c[rule.column]).limit(rows)
    ).with_for_update(skip_locked=True)
    with begin() as connection:
        return connection.execute(delete(rule.table).where(ctid.in_(some))).rowcount
