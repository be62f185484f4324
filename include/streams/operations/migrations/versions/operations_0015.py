"""operations_audit: who did which repair, when and why; replays: dead letters that a person has settled"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "operations_0015"
down_revision = "operations_0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "operations_audit",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("user_name", sa.Text, nullable=False),
        sa.Column("dag_id", sa.Text),
        sa.Column("run_id", sa.Text),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("arguments", postgresql.JSONB, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("dry_run", sa.Boolean, nullable=False),
        sa.Column("outcome", sa.String(16), server_default="started", nullable=False),
        sa.Column("detail", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_operations_audit"),
        sa.CheckConstraint(
            "outcome in ('started', 'done', 'refused', 'failed')", name=op.f("ck_operations_audit_outcome")
        ),
    )
    op.create_index("ix_operations_audit_at", "operations_audit", ["at"])
    op.create_index("ix_operations_audit_run", "operations_audit", ["dag_id", "run_id"])
    _allow("'replayed', 'duplicate', 'failing', 'unreadable', 'settled'")


def downgrade() -> None:
    # The release before would replay them. It replays no message that has this outcome.
    op.execute("update replays set outcome = 'replayed' where outcome = 'settled'")
    _allow("'replayed', 'duplicate', 'failing', 'unreadable'")
    op.drop_table("operations_audit")


def _allow(outcomes: str) -> None:
    op.execute("alter table replays drop constraint ck_replays_outcome")
    # Not valid: the existing rows are not read, which would lock the table for longer. They satisfy it.
    op.execute(f"alter table replays add constraint ck_replays_outcome check (outcome in ({outcomes})) not valid")
