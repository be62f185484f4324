"""claim_ranges: an index to find the claim that holds a message"""

from alembic import op

revision = "operations_0009"
down_revision = "operations_0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_claim_ranges_offsets", "claim_ranges", ["topic", "partition", "end_offset"])


def downgrade() -> None:
    op.drop_index("ix_claim_ranges_offsets", "claim_ranges")
