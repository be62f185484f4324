"""landing_gaps: offsets that are missing in a landing table, and their outcomes"""

import sqlalchemy as sa
from alembic import op

revision = "landing_0001"
down_revision = None
branch_labels = ("landing",)
depends_on = None

timestamp = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "landing_gaps",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("topic_id", sa.Text, nullable=False),
        sa.Column("partition", sa.BigInteger, nullable=False),
        sa.Column("start_offset", sa.BigInteger, nullable=False),
        sa.Column("end_offset", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("records", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("found_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_landing_gaps"),
        sa.CheckConstraint("start_offset < end_offset", name=op.f("ck_landing_gaps_ordered")),
        sa.CheckConstraint("state in ('missing', 'repaired', 'no_record', 'lost')", name=op.f("ck_landing_gaps_state")),
    )
    op.create_index("ix_landing_gaps_offsets", "landing_gaps", ["topic_id", "partition", "end_offset"])


def downgrade() -> None:
    op.drop_table("landing_gaps")
