"""consumer_samples, landing_samples, outcome_intervals, outcome_counts: the last hours, for the Streams page"""

import sqlalchemy as sa
from alembic import op

revision = "operations_0017"
down_revision = "operations_0015"
branch_labels = None
depends_on = None

Timestamp = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "consumer_samples",
        sa.Column("consumer", sa.Text, primary_key=True),
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("sampled_at", Timestamp, server_default=sa.func.now(), primary_key=True),
        sa.Column("lag", sa.BigInteger, nullable=False),
        sa.Column("age_seconds", sa.BigInteger),
    )
    op.create_index("ix_consumer_samples_sampled_at", "consumer_samples", ["sampled_at"])
    op.create_table(
        "landing_samples",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("sampled_at", Timestamp, server_default=sa.func.now(), primary_key=True),
        sa.Column("connector", sa.Text),
        sa.Column("cause", sa.Text),
        sa.Column("not_landed", sa.BigInteger),
        sa.Column("topic_id", sa.Text),
        sa.Column("table_rows", sa.BigInteger),
        sa.Column("committed_at", Timestamp),
    )
    op.create_index("ix_landing_samples_sampled_at", "landing_samples", ["sampled_at"])
    op.create_table("outcome_intervals", sa.Column("starts_at", Timestamp, primary_key=True))
    op.create_table(
        "outcome_counts",
        sa.Column("starts_at", Timestamp, primary_key=True),
        sa.Column("consumer", sa.Text, primary_key=True),
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("outcome", sa.String(16), primary_key=True),
        sa.Column("reason", sa.Text, primary_key=True),
        sa.Column("messages", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    for table in ("outcome_counts", "outcome_intervals", "landing_samples", "consumer_samples"):
        op.drop_table(table)
