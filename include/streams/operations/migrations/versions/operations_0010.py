"""inbox: a digest of the event in addition to its id

The same id with another digest is a conflict, not a duplicate. Older rows have no digest; an event with the id of such
a row counts as a duplicate.
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
