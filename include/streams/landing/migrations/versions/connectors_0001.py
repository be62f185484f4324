"""connector_watch: the state that the watchdog of the connectors keeps between two checks"""

import sqlalchemy as sa
from alembic import op

revision = "connectors_0001"
down_revision = None
branch_labels = ("connectors",)
depends_on = None

timestamp = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "connector_watch",
        sa.Column("connector", sa.Text, nullable=False),
        sa.Column("restarts", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("restarted_at", timestamp),
        sa.Column("sink_offsets", sa.BigInteger, server_default="-1", nullable=False),
        sa.Column("sink_moved_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.Column("table_offsets", sa.BigInteger, server_default="-1", nullable=False),
        sa.Column("table_moved_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("connector", name="pk_connector_watch"),
    )


def downgrade() -> None:
    op.drop_table("connector_watch")
