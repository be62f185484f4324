"""Tables of the operational database.

Core tables, no mapped classes: the first ORM statement of a process configures every mapped class that is loaded, and
with Airflow in the process that imports all of Airflow's models: 0.45 s in every task.

A package of the example adds its own tables to the same `metadata`, and its own revisions (`migrate.py` finds them).
"""

from enum import StrEnum

from sqlalchemy import (
    BigInteger,
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

# Constraints have names, so that a migration can drop what it made.
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
    """A timestamp that the database sets."""
    return Column(name, Timestamp, server_default=func.now(), nullable=False)


# A consumer; its row is the lock that claimers take.
consumers = Table("consumers", metadata, Column("name", Text, primary_key=True), now_column("created_at"))

# The next offset that a consumer has not claimed. Kept when claims are pruned.
positions = Table(
    "positions",
    metadata,
    Column("consumer", Text, ForeignKey("consumers.name"), primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("partition", BigInteger, primary_key=True),
    # The identity of the log: a topic that is recreated starts at offset 0 under the same name.
    Column("topic_id", Text, nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    # The partition leader's epoch when the log reached to next_offset; null when the broker does not give it.
    Column("leader_epoch", BigInteger),
)

# Where a log ended when it was looked at, and when: a record behind that end arrived later. A record's own timestamp
# does not say when it arrived: a device that was offline sends old ones.
log_ends = Table(
    "log_ends",
    metadata,
    Column("consumer", Text, primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("partition", BigInteger, primary_key=True),
    Column("end_offset", BigInteger, primary_key=True),
    Column("seen_at", Timestamp, nullable=False),
)

# Transactions that hold a partition's last stable offset, and since when that was seen. `source` is who is held up.
open_transactions = Table(
    "open_transactions",
    metadata,
    Column("source", Text, primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("partition", BigInteger, primary_key=True),
    Column("stable_offset", BigInteger, nullable=False),
    Column("seen_at", Timestamp, nullable=False),
)

# The offset ranges that one Dag run owns; a row even when it claimed nothing.
claims = Table(
    "claims",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("consumer", Text, ForeignKey("consumers.name"), nullable=False),
    Column("run_id", Text, nullable=False),
    now_column("claimed_at"),
    # Set when every offset of every range is handled: until then the claim is open.
    Column("closed_at", Timestamp),
    # One Dag run per message: when, and how often, the partition keys of this claim were emitted.
    Column("emitted_at", Timestamp),
    Column("emissions", BigInteger, server_default="0", nullable=False),
    UniqueConstraint("consumer", "run_id"),
    Index("ix_claims_open", "consumer", "claimed_at", postgresql_where=text("closed_at is null")),
    Index("ix_claims_closed_at", "closed_at", postgresql_where=text("closed_at is not null")),
)

# Offsets [start_offset, end_offset) of one partition, immutable. Retention had removed [start_offset, readable_from)
# before the claim was made: lost, and on record here.
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
    # One run for each message looks up the claim that holds its offset.
    Index("ix_claim_ranges_offsets", "topic", "partition", "end_offset"),
)

# Offsets of a claim that are done: each has an inbox row, or holds no record, or is lost to retention.
handled_ranges = Table(
    "handled_ranges",
    metadata,
    Column("claim_id", BigInteger, ForeignKey("claims.id", ondelete="CASCADE"), primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("partition", BigInteger, primary_key=True),
    Column("start_offset", BigInteger, primary_key=True),
    Column("end_offset", BigInteger, primary_key=True),
    # Offsets that retention removed between the claim and the reading: all of the range, or none.
    Column("lost", BigInteger, server_default="0", nullable=False),
    now_column("handled_at"),
)


class Outcome(StrEnum):
    """What became of a message."""

    handled = "handled"
    # Its event was handled before, at other coordinates.
    duplicate = "duplicate"
    dead_letter = "dead_letter"


# One row for every message a consumer is done with. Two unique keys: the coordinates stop redelivery, the event id
# stops what a producer sent twice. Coordinates hold the topic's id, because a topic that was made again uses the same
# offsets for other messages.
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
    # What the event says (contracts/digests.py); null in rows from before there were digests.
    Column("digest", LargeBinary),
    Column("outcome", String(16), nullable=False),
    # Why a dead letter is one (a Reason) and where in the message; null otherwise.
    Column("reason", Text),
    Column("detail", Text),
    Column("run_id", Text, nullable=False),
    now_column("recorded_at"),
    CheckConstraint("outcome in ('handled', 'duplicate', 'dead_letter')", name="outcome"),
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

# What must leave the database: written with the effect, delivered afterwards at least once. `id` is the idempotency
# key that the receiver sees. `state` is pending, delivered, skipped (its connection is not defined) or failed (refused
# too often; kept, and an alarm is open).
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
    # Null: a Kafka record without a value.
    Column("body", LargeBinary),
    # Of a raw Kafka record: JSON, a list of [name, value in base64 or null], in the record's order.
    Column("headers", Text),
    Column("state", String(16), server_default="pending", nullable=False),
    Column("attempts", BigInteger, server_default="0", nullable=False),
    Column("last_error", Text),
    now_column("created_at"),
    # Not delivered before: after a failed attempt, and while the task that wrote the row delivers it.
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

# What is known of a route, the rows of one consumer to one destination: it is not used before `retry_at`, because its
# receiver is away (`failures` attempts in a row), or because a process has it (a lease; then the process extends it).
outbox_routes = Table(
    "outbox_routes",
    metadata,
    Column("consumer", Text, primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("destination", Text, primary_key=True),
    Column("failures", BigInteger, server_default="0", nullable=False),
    now_column("retry_at"),
    Column("last_error", Text),
)

# Dead letters that a replay has looked at, by their coordinates in the dead-letter topic; `outcome` is the last look's.
# Nothing is committed to Kafka by a replay: these rows are its progress. A row goes when its dead letter has gone, not
# before, or the message would be sent once more.
replays = Table(
    "replays",
    metadata,
    # The dead-letter topic's id, as in the inbox.
    Column("topic_id", Text, primary_key=True),
    Column("partition", BigInteger, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    # The topic that the message was on, and where, as the dead letter says; null when it does not say.
    Column("topic", Text, nullable=False),
    Column("source_partition", BigInteger),
    Column("source_offset", BigInteger),
    # As written in the dead letter. A topic that was made again has the same offsets, but not the same times.
    Column("source_timestamp", Text),
    Column("consumer", Text),
    # Why it became a dead letter.
    Column("reason", Text),
    Column("outcome", String(16), nullable=False),
    # Why it still fails: names of fields, no values.
    Column("detail", Text),
    Column("repairs", Text),
    Column("run_id", Text, nullable=False),
    now_column("recorded_at"),
    CheckConstraint("outcome in ('replayed', 'duplicate', 'failing', 'unreadable')", name="outcome"),
    Index("ix_replays_source", "topic", "source_partition", "source_offset"),
    Index("ix_replays_recorded_at", "recorded_at"),
)

# Something a person must look at. One row an episode: open until what caused it is gone.
alarms = Table(
    "alarms",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("source", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("message", Text, nullable=False),
    now_column("opened_at"),
    Column("closed_at", Timestamp),
    Index("uq_alarms_open", "source", "kind", unique=True, postgresql_where=text("closed_at is null")),
    Index("ix_alarms_closed_at", "closed_at", postgresql_where=text("closed_at is not null")),
)

# When each of the Dags that look after the others last ran: the others raise an alarm about one that is silent.
heartbeats = Table(
    "heartbeats",
    metadata,
    Column("dag_id", Text, primary_key=True),
    now_column("beat_at"),
    Column("every_seconds", BigInteger, nullable=False),
)
