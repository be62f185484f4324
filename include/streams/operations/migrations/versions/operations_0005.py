"""outbox: records with headers, and records without a value

A raw Kafka record that could not be published directly keeps its headers, and may have no value.
"""

import sqlalchemy as sa
from alembic import op

revision = "operations_0005"
down_revision = "operations_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("outbox", sa.Column("headers", sa.Text))
    op.alter_column("outbox", "body", nullable=True)


def downgrade() -> None:
    op.execute("delete from outbox where body is null")
    op.alter_column("outbox", "body", nullable=False)
    op.drop_column("outbox", "headers")
