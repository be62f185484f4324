"""indexes for rows that are pruned by age, and for failed rows of the outbox

Without them, each prune would read whole tables, even when no row is due.
"""

import sqlalchemy as sa
from alembic import op

revision = "operations_0004"
down_revision = "operations_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    closed = sa.text("closed_at is not null")
    op.create_index("ix_claims_closed_at", "claims", ["closed_at"], postgresql_where=closed)
    op.create_index("ix_alarms_closed_at", "alarms", ["closed_at"], postgresql_where=closed)
    failed = sa.text("state = 'failed'")
    op.create_index("ix_outbox_failed", "outbox", ["consumer"], postgresql_where=failed)
    settled = sa.text("state in ('delivered', 'skipped')")
    op.create_index("ix_outbox_settled", "outbox", ["created_at"], postgresql_where=settled)


def downgrade() -> None:
    op.drop_index("ix_outbox_settled", "outbox")
    op.drop_index("ix_outbox_failed", "outbox")
    op.drop_index("ix_alarms_closed_at", "alarms")
    op.drop_index("ix_claims_closed_at", "claims")
