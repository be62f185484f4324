"""landing_objects: the offsets of objects that sinks of other products write"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "landing_0003"
down_revision = "landing_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "landing_objects",
        sa.Column("topic_id", sa.Text, nullable=False),
        sa.Column("path", sa.Text(collation="C"), nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("modified_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("partition", sa.BigInteger, nullable=False),
        sa.Column("start_offset", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("first_offset", sa.BigInteger, nullable=True),
        sa.Column("end_offset", sa.BigInteger, nullable=True),
        sa.Column("records", sa.BigInteger, nullable=True),
        sa.Column("ranges", postgresql.INT8MULTIRANGE, nullable=True),
        sa.Column("proven", sa.Boolean, server_default="false", nullable=False),
        sa.Column("found_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("state in ('listed', 'read', 'damaged')", name=op.f("ck_landing_objects_state")),
        sa.PrimaryKeyConstraint("topic_id", "path", name=op.f("pk_landing_objects")),
    )
    op.create_index("ix_landing_objects_end", "landing_objects", ["topic_id", "partition", "end_offset"])
    op.create_index("ix_landing_objects_start", "landing_objects", ["topic_id", "partition", "start_offset"])


def downgrade() -> None:
    op.drop_table("landing_objects")
