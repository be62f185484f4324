"""replays: the outcomes of dead letters in replays

A replay commits nothing to Kafka: these rows are its progress.
"""

import sqlalchemy as sa
from alembic import op

revision = "operations_0003"
down_revision = "operations_0002"
branch_labels = None
depends_on = None

timestamp = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "replays",
        sa.Column("topic_id", sa.Text, nullable=False),
        sa.Column("partition", sa.BigInteger, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("source_partition", sa.BigInteger),
        sa.Column("source_offset", sa.BigInteger),
        sa.Column("source_timestamp", sa.Text),
        sa.Column("consumer", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text),
        sa.Column("repairs", sa.Text),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("recorded_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("topic_id", "partition", "offset", name="pk_replays"),
        sa.CheckConstraint(
            "outcome in ('replayed', 'duplicate', 'failing', 'unreadable')", name=op.f("ck_replays_outcome")
        ),
    )
    op.create_index("ix_replays_source", "replays", ["topic", "source_partition", "source_offset"])
    op.create_index("ix_replays_recorded_at", "replays", ["recorded_at"])


def downgrade() -> None:
    op.drop_table("replays")
