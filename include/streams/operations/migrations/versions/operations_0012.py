"""postponed_ranges: ranges that a run has left, because the effects of some of their messages keep failing"""

import sqlalchemy as sa
from alembic import op

revision = "operations_0012"
down_revision = "operations_0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "postponed_ranges",
        sa.Column("claim_id", sa.BigInteger, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("partition", sa.BigInteger, nullable=False),
        sa.Column("start_offset", sa.BigInteger, nullable=False),
        sa.Column("end_offset", sa.BigInteger, nullable=False),
        sa.Column("tries", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["claim_id"], ["claims.id"], name="fk_postponed_ranges_claim_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint(
            "claim_id", "topic", "partition", "start_offset", "end_offset", name="pk_postponed_ranges"
        ),
    )
    op.create_index("ix_postponed_ranges_due_at", "postponed_ranges", ["due_at"])


def downgrade() -> None:
    op.drop_table("postponed_ranges")
