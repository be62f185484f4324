"""claims: when their keys were emitted

For consumers with one Dag run per message: Airflow drops the keys of a paused Dag. So the keys of claims that stay open
are emitted again, each time after a longer wait.
"""

import sqlalchemy as sa
from alembic import op

revision = "operations_0002"
down_revision = "operations_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("claims", sa.Column("emitted_at", sa.DateTime(timezone=True)))
    op.add_column("claims", sa.Column("emissions", sa.BigInteger, server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("claims", "emissions")
    op.drop_column("claims", "emitted_at")
