"""heartbeats: when each of the maintenance Dags last ran"""

import sqlalchemy as sa
from alembic import op

revision = "operations_0006"
down_revision = "operations_0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "heartbeats",
        sa.Column("dag_id", sa.Text, nullable=False),
        sa.Column("beat_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("every_seconds", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("dag_id", name="pk_heartbeats"),
    )


def downgrade() -> None:
    op.drop_table("heartbeats")
