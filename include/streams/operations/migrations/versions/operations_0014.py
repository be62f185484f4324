"""inbox: the outcome of messages that no contract of their topic's union takes"""

from alembic import op

revision = "operations_0014"
down_revision = "operations_0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _allow("'handled', 'duplicate', 'dead_letter', 'not_wanted'")


def downgrade() -> None:
    # A duplicate has no effect either.
    op.execute("update inbox set outcome = 'duplicate' where outcome = 'not_wanted'")
    _allow("'handled', 'duplicate', 'dead_letter'")


def _allow(outcomes: str) -> None:
    op.execute("alter table inbox drop constraint ck_inbox_outcome")
    # Not valid: the existing rows are not read, which would lock a large inbox for minutes. They satisfy it.
    op.execute(f"alter table inbox add constraint ck_inbox_outcome check (outcome in ({outcomes})) not valid")
