"""Tables of the operational database.

They are SQLAlchemy Core tables without mapped classes. The first ORM statement of a process configures every mapped
class that is loaded. With Airflow in the process, this imports all of Airflow's models and costs 0.45 s in every task.

A package of the project adds its own tables to the same `metadata`, and its own revisions (`migrate.py` finds them).
"""

from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

# Constraints have names, so that a migration can drop the constraints that an earlier one created.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
Timestamp = DateTime(timezone=True)


def now_column(name: str) -> Column:
    """A timestamp column, set by the database to the time at which the transaction began."""
    return Column(name, Timestamp, server_default=func.now(), nullable=False)


# The consumers. A claim locks the row of its consumer.
consumers = Table("consumers", metadata, Column("name", Text, primary_key=True), now_column("created_at"))

# For each partition, the first offset that a consumer has not claimed. Kept when claims are pruned. Under the name of a
# landing table: the offset up to which the nightly check has found it complete (`landing/upkeep.py`).
positions = Table(
    "positions",
    metadata,
    Column("consumer", Text, ForeignKey("consumers.name"), primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("partition", BigInteger, primary_key=True),
    # The identity of the log: a recreated topic starts at offset 0 under the same name.
    Column("topic_id", Text, nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    # The partition leader's epoch at the latest claim; null when the broker does not report it.
    Column("leader_epoch", BigInteger),
)

# The ends of logs at the times of checks: a record at or after such an end arrived later than the check. A record's own
# timestamp is not its time of arrival, because a device that was offline sends old timestamps.
log_ends = Table(
    "log_ends",
    metadata,
    Column("consumer", Text, primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("partition", BigInteger, primary_key=True),
    Column("end_offset", BigInteger, primary_key=True),
    Column("seen_at", Timestamp, nullable=False),
)

# Open transactions that hold back the last stable offset of a partition, and when each was first seen. `source` is the
# consumer or connector that is blocked.
open_transactions = Table(
    "open_transactions",
    metadata,
    Column("source", Text, primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("partition", BigInteger, primary_key=True),
    Column("stable_offset", BigInteger, nullable=False),
    Column("seen_at", Timestamp, nullable=False),
)

# The claims: one row per Dag run, also when the run claimed no offsets.
claims = Table(
    "claims",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("consumer", Text, ForeignKey("consumers.name"), nullable=False),
    Column("run_id", Text, nullable=False),
    now_column("claimed_at"),
    # Set when every offset of every range is handled. Until then the claim is open.
    Column("closed_at", Timestamp),
    # One Dag run per message: when the partition keys of this claim were last emitted, and how often.
    Column("emitted_at", Timestamp),
    Column("emissions", BigInteger, server_default="0", nullable=False),
    UniqueConstraint("consumer", "run_id"),
    Index("ix_claims_open", "consumer", "claimed_at", postgresql_where=text("closed_at is null")),
    Index("ix_claims_closed_at", "closed_at", postgresql_where=text("closed_at is not null")),
)

# The ranges of a claim: offsets [start_offset, end_offset) of one partition, immutable. Retention had removed
# [start_offset, readable_from) before the claim was made: this part is lost and recorded here.
claim_ranges = Table(
    "claim_ranges",
    metadata,
    Column("claim_id", BigInteger, ForeignKey("claims.id", ondelete="CASCADE"), primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("partition", BigInteger, primary_key=True),
    Column("topic_id", Text, nullable=False),
    Column("start_offset", BigInteger, nullable=False),
    Column("readable_from", BigInteger, nullable=False),
    Column("end_offset", BigInteger, nullable=False),
    CheckConstraint("start_offset <= readable_from and readable_from <= end_offset", name="ordered"),
    # With one run per message, each run looks up the claim that holds its offset.
    Index("ix_claim_ranges_offsets", "topic", "partition", "end_offset"),
)

# Completed offsets of a claim: each has an inbox row, or holds no record, or was removed by retention.
handled_ranges = Table(
    "handled_ranges",
    metadata,
    Column("claim_id", BigInteger, ForeignKey("claims.id", ondelete="CASCADE"), primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("partition", BigInteger, primary_key=True),
    Column("start_offset", BigInteger, primary_key=True),
    Column("end_offset", BigInteger, primary_key=True),
    # The number of offsets that retention removed between the claim and the read: all of the range, or none.
    Column("lost", BigInteger, server_default="0", nullable=False),
    now_column("handled_at"),
)

# Ranges of open claims that a run has left because the effects of some of their messages keep failing. They are tried
# again from `due_at` on. While a range is still retried in its run, `tries` is -1, and `due_at` is when its first try
# began.
postponed_ranges = Table(
    "postponed_ranges",
    metadata,
    Column("claim_id", BigInteger, ForeignKey("claims.id", ondelete="CASCADE"), primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("partition", BigInteger, primary_key=True),
    Column("start_offset", BigInteger, primary_key=True),
    Column("end_offset", BigInteger, primary_key=True),
    Column("tries", BigInteger, server_default="0", nullable=False),
    Column("due_at", Timestamp, nullable=False),
    Index("ix_postponed_ranges_due_at", "due_at"),
)


class Outcome(StrEnum):
    """The outcome of a message for a consumer."""

    handled = "handled"
    # Its event was handled before, at other coordinates.
    duplicate = "duplicate"
    dead_letter = "dead_letter"
    # No contract of the topic's union takes messages of its type.
    not_wanted = "not_wanted"


# One row for every message that a consumer has completed. It has two unique keys: the coordinates prevent a second
# handling of the same record, the event id prevents a second effect of an event that a producer sent twice. The
# coordinates include the topic's id, because a recreated topic uses the same offsets for other messages.
inbox = Table(
    "inbox",
    metadata,
    Column("consumer", Text, primary_key=True),
    Column("topic_id", Text, primary_key=True),
    Column("partition", BigInteger, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("topic", Text, nullable=False),
    Column("contract", Text, nullable=False),
    Column("event_id", Text),
    # The digest of the event's content (contracts/digests.py); null without an event, and in rows from before digests.
    Column("digest", LargeBinary),
    Column("outcome", String(16), nullable=False),
    # For a dead letter: the reason (a Reason), and the details, such as the fields; null otherwise.
    Column("reason", Text),
    Column("detail", Text),
    Column("run_id", Text, nullable=False),
    now_column("recorded_at"),
    CheckConstraint("outcome in ('handled', 'duplicate', 'dead_letter', 'not_wanted')", name="outcome"),
    Index(
        "uq_inbox_event",
        "consumer",
        "contract",
        "event_id",
        unique=True,
        postgresql_where=text("outcome = 'handled'"),
    ),
    Index("ix_inbox_recorded_at", "recorded_at"),
)

# Messages and requests to send: written in the transaction of the effect, delivered afterwards at least once. `id` is
# the idempotency key for the receiver. `state` is pending, delivered, skipped (its connection is not defined) or failed
# (refused too often; the row is kept, and an alarm is open).
outbox = Table(
    "outbox",
    metadata,
    Column("sequence", BigInteger, Identity(), primary_key=True),
    Column("id", Uuid, server_default=text("gen_random_uuid()"), unique=True, nullable=False),
    Column("consumer", Text, nullable=False),
    Column("kind", String(16), nullable=False),
    # A topic's name, or the id of an Airflow HTTP connection.
    Column("destination", Text, nullable=False),
    Column("key", LargeBinary),
    # Null for a Kafka record without a value.
    Column("body", LargeBinary),
    # For a raw Kafka record: JSON, a list of [name, value in base64 or null], in the record's order.
    Column("headers", Text),
    Column("state", String(16), server_default="pending", nullable=False),
    Column("attempts", BigInteger, server_default="0", nullable=False),
    Column("last_error", Text),
    now_column("created_at"),
    # The earliest delivery by the Dag: later than the insert while the task that wrote the row delivers it, and after
    # a failed attempt.
    now_column("due_at"),
    Column("delivered_at", Timestamp),
    CheckConstraint("state in ('pending', 'delivered', 'skipped', 'failed')", name="state"),
    CheckConstraint("kind in ('message', 'request')", name="kind"),
    Index(
        "ix_outbox_pending",
        "consumer",
        "kind",
        "destination",
        "due_at",
        "sequence",
        postgresql_where=text("state = 'pending'"),
    ),
    Index("ix_outbox_failed", "consumer", postgresql_where=text("state = 'failed'")),
    Index("ix_outbox_settled", "created_at", postgresql_where=text("state in ('delivered', 'skipped')")),
)

# The state of a route, which is the rows of one consumer to one destination. The route is not used before `retry_at`:
# either its receiver was unavailable for `failures` consecutive attempts, or a process holds a lease on it, which the
# process extends.
outbox_routes = Table(
    "outbox_routes",
    metadata,
    Column("consumer", Text, primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("destination", Text, primary_key=True),
    Column("failures", BigInteger, server_default="0", nullable=False),
    now_column("retry_at"),
    Column("last_error", Text),
    # When the connection was first found to be undefined; null again as soon as it is found.
    Column("undefined_since", Timestamp),
)

# Dead letters that a replay has processed, by their coordinates in the dead-letter topic, with the latest outcome. A
# replay commits nothing to Kafka: these rows are its progress. A row must not be deleted before its dead letter is
# gone, or the message would be sent again.
replays = Table(
    "replays",
    metadata,
    # The dead-letter topic's id, as in the inbox; with "until" and a time once another dead letter has the offset.
    Column("topic_id", Text, primary_key=True),
    Column("partition", BigInteger, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    # The message's own topic, and its coordinates there from the dead letter's headers; null without them.
    Column("topic", Text, nullable=False),
    Column("source_partition", BigInteger),
    Column("source_offset", BigInteger),
    # The text from the headers. A recreated topic uses the same offsets, but with other timestamps.
    Column("source_timestamp", Text),
    Column("consumer", Text),
    # Why the message became a dead letter.
    Column("reason", Text),
    Column("outcome", String(16), nullable=False),
    # Why the message still fails: names of fields, no values. For a settled one: why it will not be replayed.
    Column("detail", Text),
    Column("repairs", Text),
    Column("run_id", Text, nullable=False),
    now_column("recorded_at"),
    CheckConstraint("outcome in ('replayed', 'duplicate', 'failing', 'unreadable', 'settled')", name="outcome"),
    Index("ix_replays_source", "topic", "source_partition", "source_offset"),
    Index("ix_replays_recorded_at", "recorded_at"),
)

# Conditions that a person must examine. One row per episode, which is open until its cause is gone. `kind` is a member
# of an enum (`alarm_kinds.py`); `key` is what the alarm is about within its source, or empty.
alarms = Table(
    "alarms",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("source", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("key", Text, server_default="", nullable=False),
    Column("message", Text, nullable=False),
    now_column("opened_at"),
    Column("closed_at", Timestamp),
    Index("uq_alarms_open", "source", "kind", "key", unique=True, postgresql_where=text("closed_at is null")),
    Index("ix_alarms_closed_at", "closed_at", postgresql_where=text("closed_at is not null")),
)

# When each maintenance Dag last ran. If a Dag is late, another one opens an alarm.
heartbeats = Table(
    "heartbeats",
    metadata,
    Column("dag_id", Text, primary_key=True),
    now_column("beat_at"),
    Column("every_seconds", BigInteger, nullable=False),
)

# The lag of each consumer at each check of the Dag `maintain`, for the curves on the Streams page.
consumer_samples = Table(
    "consumer_samples",
    metadata,
    Column("consumer", Text, primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("sampled_at", Timestamp, server_default=func.now(), primary_key=True),
    Column("lag", BigInteger, nullable=False),
    # How long the oldest unclaimed message has waited; null if there is none.
    Column("age_seconds", BigInteger),
    Index("ix_consumer_samples_sampled_at", "sampled_at"),
)

# The state of each landed topic at each check of the Dags `watch_connectors` (connector, not_landed) and `maintain`
# (the columns of the table). A check leaves the columns null that it does not see.
landing_samples = Table(
    "landing_samples",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("sampled_at", Timestamp, server_default=func.now(), primary_key=True),
    # The state of the connector and its tasks, why it failed, and the records that its sink has not read.
    Column("connector", Text),
    Column("cause", Text),
    Column("not_landed", BigInteger),
    # The landing table: its identity, its rows, and the time of its last commit.
    Column("topic_id", Text),
    Column("table_rows", BigInteger),
    Column("committed_at", Timestamp),
    Index("ix_landing_samples_sampled_at", "sampled_at"),
)

# Inbox rows counted by intervals of 15 minutes: counting the rows of a busy day takes seconds. An interval is counted
# once, some minutes after its end; `outcome_intervals` has the counted intervals.
outcome_intervals = Table("outcome_intervals", metadata, Column("starts_at", Timestamp, primary_key=True))
outcome_counts = Table(
    "outcome_counts",
    metadata,
    Column("starts_at", Timestamp, primary_key=True),
    Column("consumer", Text, primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("outcome", String(16), primary_key=True),
    # For dead letters; empty otherwise.
    Column("reason", Text, primary_key=True),
    Column("messages", BigInteger, nullable=False),
)

# The repairs that people have done, also as dry runs: one row for each try (`audit.py`). A row is written before the
# repair, and its outcome in the repair's own transaction. So `started` means that the process was killed.
operations_audit = Table(
    "operations_audit",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    now_column("at"),
    Column("ended_at", Timestamp),
    Column("user_name", Text, nullable=False),
    # The Dag run that did the repair; null for a command in a shell.
    Column("dag_id", Text),
    Column("run_id", Text),
    Column("action", Text, nullable=False),
    # The parameters without `reason` and `dry_run`: names and coordinates, no payload.
    Column("arguments", JSONB, nullable=False),
    Column("reason", Text, nullable=False),
    Column("dry_run", Boolean, nullable=False),
    Column("outcome", String(16), server_default="started", nullable=False),
    # What was done, one change a line, or the error.
    Column("detail", Text),
    CheckConstraint("outcome in ('started', 'done', 'refused', 'failed')", name="outcome"),
    Index("ix_operations_audit_at", "at"),
    Index("ix_operations_audit_run", "dag_id", "run_id"),
)
