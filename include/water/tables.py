"""The example's tables in the operational database; made by the revisions in `include/water/migrations`."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Table, Text

from include.operations.tables import Timestamp, metadata, now_column

# An alert: one row for one earthquake or leak, however often it is revised.
alerts = Table(
    "alerts",
    metadata,
    Column("alert_id", Text, primary_key=True),
    # 1 when raised; one more with each rise of severity.
    Column("revision", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("severity", Text, nullable=False),
    # The severity's place in their order, so that one statement can compare and replace.
    Column("severity_rank", BigInteger, nullable=False),
    Column("district_id", Text),
    Column("site_id", Text),
    Column("title", Text, nullable=False),
    now_column("raised_at"),
    now_column("updated_at"),
    # The message that raised it, or raised it to this severity.
    Column("source_event_id", Text, nullable=False),
    Column("source_topic", Text, nullable=False),
    Column("source_partition", BigInteger, nullable=False),
    Column("source_offset", BigInteger, nullable=False),
    Column("source_timestamp", Timestamp),
    CheckConstraint("kind in ('seismic', 'leak')", name="kind"),
    CheckConstraint("severity in ('minor', 'major', 'critical')", name="severity"),
    Index("ix_alerts_updated_at", "updated_at"),
)

# A revision of the seismic feed that is in Kafka: in `seismic.events`, or in its dead-letter topic.
published_seismic_events = Table(
    "published_seismic_events",
    metadata,
    # The event's id, or "rejected:" and a digest of what the feed sent.
    Column("event_id", Text, primary_key=True),
    now_column("published_at"),
    Index("ix_published_seismic_events_published_at", "published_at"),
)
