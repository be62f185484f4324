"""outbox_routes: since when the connection of a route is not defined

Requests of a route are skipped only after its connection was not defined for a while.
"""

import sqlalchemy as sa
from alembic import op

revision = "operations_0011"
down_revision = "operations_0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("outbox_routes", sa.Column("undefined_since", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("outbox_routes", "undefined_since")
