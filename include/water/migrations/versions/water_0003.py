"""board_tiles"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "water_0003"
down_revision = "water_0002"
branch_labels = None
depends_on = None

timestamp = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "board_tiles",
        sa.Column("tile", sa.Text, nullable=False),
        sa.Column("content", postgresql.JSONB, nullable=False),
        sa.Column("since", timestamp, nullable=False),
        sa.Column("refreshed_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("tile", name="pk_board_tiles"),
    )


def downgrade() -> None:
    op.drop_table("board_tiles")
