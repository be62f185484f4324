"""alerts, published_seismic_events

A revision records what was done, so it spells out the tables and does not import the models; a test compares the two.
"""

import sqlalchemy as sa
from alembic import op

revision = "water_0001"
down_revision = None
branch_labels = ("water",)
depends_on = None

timestamp = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "alerts",
        sa.Column("alert_id", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("severity", sa.Text, nullable=False),
        sa.Column("severity_rank", sa.BigInteger, nullable=False),
        sa.Column("district_id", sa.Text),
        sa.Column("site_id", sa.Text),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("raised_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.Column("source_event_id", sa.Text, nullable=False),
        sa.Column("source_topic", sa.Text, nullable=False),
        sa.Column("source_partition", sa.BigInteger, nullable=False),
        sa.Column("source_offset", sa.BigInteger, nullable=False),
        sa.Column("source_timestamp", timestamp),
        sa.PrimaryKeyConstraint("alert_id", name="pk_alerts"),
        sa.CheckConstraint("kind in ('seismic', 'leak')", name=op.f("ck_alerts_kind")),
        sa.CheckConstraint("severity in ('minor', 'major', 'critical')", name=op.f("ck_alerts_severity")),
    )
    op.create_index("ix_alerts_updated_at", "alerts", ["updated_at"])
    op.create_table(
        "published_seismic_events",
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("published_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="pk_published_seismic_events"),
    )
    op.create_index("ix_published_seismic_events_published_at", "published_seismic_events", ["published_at"])


def downgrade() -> None:
    op.drop_table("published_seismic_events")
    op.drop_table("alerts")
