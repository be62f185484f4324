"""Delete old rows of completed work from the operational database.

Rows of open work are kept at any age: claims that are not handled, outbox rows that are pending or failed, open alarms.
Positions are kept too.

Rows are deleted in small transactions, oldest first, and found through an index. So a prune holds no lock for long, may
be killed at any time, and may run at the same time as another prune and as all other tasks.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, Table, delete, func, literal_column, select, text

from include.streams.contracts import Topic
from include.streams.contracts.topics import DEAD_LETTER_RETENTION
from include.streams.operations import samples
from include.streams.operations.database import begin
from include.streams.operations.tables import (
    alarms,
    claims,
    consumer_samples,
    inbox,
    landing_samples,
    operations_audit,
    outbox,
    outcome_counts,
    outcome_intervals,
    replays,
)

log = logging.getLogger(__name__)

# Rows per transaction, which takes some milliseconds.
BATCH_ROWS = 1_000
# A message can outlive its topic's retention by this time: Kafka deletes only whole segments, and starts a new segment
# every 7 days by default.
SEGMENT_ROLL = timedelta(days=7)
# Who repaired what is asked for long after the repair. The table has a few rows a day.
AUDIT_KEPT = timedelta(days=5 * 365)


@dataclass(frozen=True)
class Rule:
    """A rule for deletion: rows of `table` are deleted when `column` is older than `kept` and `only` holds.

    Attributes:
        table: The table.
        column: The column with a row's time.
        kept: How long rows are kept.
        only: A condition in SQL; None for all rows.
    """

    table: Table
    column: str
    kept: timedelta
    # Literal SQL without parameters, so that it matches the condition of the partial index.
    only: str | None = None

    def due(self) -> ColumnElement[bool]:
        """The condition, in SQL, that the rows to be deleted meet."""
        old = self.table.c[self.column] < func.now() - self.kept
        return old if self.only is None else old & text(self.only)


class RetentionTooShort(ValueError):
    """Inbox rows would be deleted while they still prevent a second effect of a message."""


def rules(
    topics: Iterable[Topic], *, inbox_days: int | None, claims_days: int, outbox_days: int, alarms_days: int
) -> list[Rule]:
    """The rules for pruning.

    Ranges of claims are deleted together with their claims.

    Args:
        topics: The topics whose messages the inbox must recognize.
        inbox_days: Days after which inbox rows are deleted; None to keep them forever.
        claims_days: Days after which closed claims are deleted.
        outbox_days: Days after which delivered and skipped outbox rows are deleted.
        alarms_days: Days after which closed alarms are deleted.

    Raises:
        RetentionTooShort: A message of one of the topics could still arrive after its inbox row is deleted.
    """
    days = timedelta(days=1)
    inbox_rules = []
    if inbox_days is not None:
        check_inbox(inbox_days * days, topics)
        inbox_rules = [Rule(inbox, "recorded_at", inbox_days * days)]
    return [
        *inbox_rules,
        # The progress of replays: without its row, a dead letter that still exists would be replayed again.
        Rule(replays, "recorded_at", DEAD_LETTER_RETENTION + 2 * SEGMENT_ROLL),
        Rule(claims, "closed_at", claims_days * days, "closed_at is not null"),
        Rule(outbox, "created_at", outbox_days * days, "state in ('delivered', 'skipped')"),
        Rule(alarms, "closed_at", alarms_days * days, "closed_at is not null"),
        Rule(consumer_samples, "sampled_at", samples.KEPT),
        Rule(landing_samples, "sampled_at", samples.KEPT),
        Rule(outcome_counts, "starts_at", samples.KEPT),
        Rule(outcome_intervals, "starts_at", samples.KEPT),
        Rule(operations_audit, "at", AUDIT_KEPT),
    ]


def check_inbox(kept: timedelta, topics: Iterable[Topic]) -> None:
    """Check that no inbox row is deleted before the last message that it must recognize.

    A message that broke its contract is a dead letter for DEAD_LETTER_RETENTION. On its last day there, a replay may
    send it to its topic again. It stays on the topic for the topic's retention, and is read again if the consumer is
    reset. If the producer had also sent the event in another, valid message on the first day, only the inbox shows that
    the event was handled.

    Args:
        kept: How long inbox rows are kept.
        topics: The topics whose messages the inbox must recognize.

    Raises:
        RetentionTooShort: The rows of a topic must be kept for longer.
    """
    for topic in topics:
        if (needed := inbox_time(topic)) is None or topic.retention is None:
            raise RetentionTooShort(
                f"topic {topic.name} keeps its messages forever, so inbox rows must be kept forever too: give it a "
                "retention, or set inbox_days to null"
            )
        if kept < needed:
            raise RetentionTooShort(
                f"inbox rows are kept for {kept.days} days, but a message of topic {topic.name} can still arrive for "
                f"{needed.days} days ({DEAD_LETTER_RETENTION.days} as a dead letter, {topic.retention.days} in the "
                f"topic, and twice {SEGMENT_ROLL.days} until Kafka deletes its segment), and would have its effect "
                f"twice: set inbox_days to {needed.days} or more"
            )


class Stay(NamedTuple):
    """How long a broker keeps a topic's messages, by its settings.

    Attributes:
        retention: `retention.ms`; None forever.
        segment: `segment.ms`, after which a new segment starts.
    """

    retention: timedelta | None
    segment: timedelta


def inbox_time(topic: Topic, messages: Stay | None = None, dead_letters: Stay | None = None) -> timedelta | None:
    """How long an inbox row of a topic is needed.

    Args:
        topic: The topic, with the retention that it declares.
        messages: How long the broker keeps its messages; a time that is shorter than declared does not count, because
            it may just have been set.
        dead_letters: How long the broker keeps its dead letters.

    Returns:
        The time; None forever.
    """
    needed = timedelta(0)
    for declared, actual in ((topic.retention, messages), (DEAD_LETTER_RETENTION, dead_letters)):
        stay = actual or Stay(declared, SEGMENT_ROLL)
        if declared is None or stay.retention is None:
            return None
        # A segment's time counts for both: the dead letter, and the message that a replay has sent.
        needed += max(declared, stay.retention) + max(SEGMENT_ROLL, stay.segment)
    return needed


def prune(wanted: Iterable[Rule], *, seconds: float, batch_rows: int = BATCH_ROWS) -> dict[str, int]:
    """Delete the due rows for a limited time; the next run deletes the remaining ones.

    Args:
        wanted: The rules, from `rules`.
        seconds: No further transaction is started after this time.
        batch_rows: Rows per transaction.

    Returns:
        {table: number of deleted rows}.
    """
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
    # skip locked: rows that another transaction holds (such as a second prune) are left for the next run.
    batch = (
        select(ctid).select_from(rule.table).where(rule.due()).order_by(rule.table.c[rule.column]).limit(rows)
    ).with_for_update(skip_locked=True)
    with begin() as connection:
        return connection.execute(delete(rule.table).where(ctid.in_(batch))).rowcount
