"""inbox: a digest of the event beside its id

The same id with another digest is no duplicate but a conflict. Rows from before have none, and count as duplicates.
"""

import sqlalchemy as sa
from alembic import op

revision = "operations_0010"
down_revision = "operations_0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("inbox", sa.Column("digest", sa.LargeBinary))


def downgrade() -> None:
    op.drop_column("inbox", "digest")
