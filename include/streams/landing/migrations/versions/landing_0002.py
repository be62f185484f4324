"""landing_manifests: bounds of manifests; landing_gaps: many ranges in a row, and an index of missing offsets"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "landing_0002"
down_revision = "landing_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "landing_manifests",
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("table_uuid", sa.Text, nullable=False),
        sa.Column("bounds", postgresql.JSONB, nullable=False),
        sa.PrimaryKeyConstraint("path", name="pk_landing_manifests"),
    )
    op.create_index("ix_landing_manifests_table", "landing_manifests", ["table_uuid"])
    op.add_column("landing_gaps", sa.Column("ranges", postgresql.INT8MULTIRANGE, nullable=True))
    op.create_index(
        "ix_landing_gaps_missing",
        "landing_gaps",
        ["topic_id", "found_at"],
        postgresql_where=sa.text("state = 'missing'"),
    )


def downgrade() -> None:
    op.drop_index("ix_landing_gaps_missing", "landing_gaps")
    # One row per range again; otherwise the offsets between the ranges would count as settled.
    op.execute(
        "insert into landing_gaps (topic, topic_id, partition, start_offset, end_offset, state, records, found_at) "
        "select topic, topic_id, partition, lower(r), upper(r), state, 0, found_at "
        "from landing_gaps cross join unnest(ranges) r where ranges is not null"
    )
    op.execute("delete from landing_gaps where ranges is not null")
    op.drop_column("landing_gaps", "ranges")
    op.drop_table("landing_manifests")
