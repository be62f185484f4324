"""positions: leader epochs; log_ends and open_transactions: observed ends of logs and open transactions, with times"""

import sqlalchemy as sa
from alembic import op

revision = "operations_0007"
down_revision = "operations_0006"
branch_labels = None
depends_on = None

timestamp = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("positions", sa.Column("leader_epoch", sa.BigInteger))
    op.create_table(
        "log_ends",
        sa.Column("consumer", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("partition", sa.BigInteger, nullable=False),
        sa.Column("end_offset", sa.BigInteger, nullable=False),
        sa.Column("seen_at", timestamp, nullable=False),
        sa.PrimaryKeyConstraint("consumer", "topic", "partition", "end_offset", name="pk_log_ends"),
    )
    op.create_table(
        "open_transactions",
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("partition", sa.BigInteger, nullable=False),
        sa.Column("stable_offset", sa.BigInteger, nullable=False),
        sa.Column("seen_at", timestamp, nullable=False),
        sa.PrimaryKeyConstraint("source", "topic", "partition", name="pk_open_transactions"),
    )


def downgrade() -> None:
    op.drop_table("open_transactions")
    op.drop_table("log_ends")
    op.drop_column("positions", "leader_epoch")
