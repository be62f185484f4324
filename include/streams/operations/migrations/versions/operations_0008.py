"""outbox: when each row is due, and which receivers are unavailable

A route is the rows of one consumer to one destination. A route with an unavailable receiver waits and delays no other.
"""

import sqlalchemy as sa
from alembic import op

revision = "operations_0008"
down_revision = "operations_0007"
branch_labels = None
depends_on = None

timestamp = sa.DateTime(timezone=True)
pending = sa.text("state = 'pending'")


def upgrade() -> None:
    op.add_column("outbox", sa.Column("due_at", timestamp, server_default=sa.func.now(), nullable=False))
    op.drop_index("ix_outbox_pending", "outbox")
    columns = ["consumer", "kind", "destination", "due_at", "sequence"]
    op.create_index("ix_outbox_pending", "outbox", columns, postgresql_where=pending)
    op.create_table(
        "outbox_routes",
        sa.Column("consumer", sa.Text, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("destination", sa.Text, nullable=False),
        sa.Column("failures", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("retry_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.Column("last_error", sa.Text),
        sa.PrimaryKeyConstraint("consumer", "kind", "destination", name="pk_outbox_routes"),
    )


def downgrade() -> None:
    op.drop_table("outbox_routes")
    op.drop_index("ix_outbox_pending", "outbox")
    op.create_index("ix_outbox_pending", "outbox", ["consumer", "sequence"], postgresql_where=pending)
    op.drop_column("outbox", "due_at")
