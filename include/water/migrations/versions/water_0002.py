"""decisions, work_orders"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "water_0002"
down_revision = "water_0001"
branch_labels = None
depends_on = None

timestamp = sa.DateTime(timezone=True)
STATES = "state in ('executed', 'awaiting_approval', 'rejected', 'expired', 'refused')"
SEVERITIES = "severity in ('minor', 'major', 'critical')"
APPROVED = (
    "state <> 'executed' or risk = 'low' or coalesce("
    "verdict = 'approved' and approver <> '' and verdict_at <= deadline_at, false)"
)


def upgrade() -> None:
    op.create_table(
        "decisions",
        sa.Column("decision_id", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("customer_id", sa.Text, nullable=False),
        sa.Column("district_id", sa.Text),
        sa.Column("category", sa.Text, nullable=False),
        sa.Column("severity", sa.Text, nullable=False),
        sa.Column("severity_rank", sa.BigInteger, nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target_kind", sa.Text, nullable=False),
        sa.Column("target_id", sa.Text, nullable=False),
        sa.Column("evidence", JSONB, nullable=False),
        sa.Column("risk", sa.Text, nullable=False),
        sa.Column("proposal_hash", sa.Text, nullable=False),
        sa.Column("policy_version", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("refusal", sa.Text),
        sa.Column("engine", sa.Text, nullable=False),
        sa.Column("model_asked", sa.Text),
        sa.Column("model_answered", sa.Text),
        sa.Column("prompt_version", sa.Text),
        sa.Column("fallback_reason", sa.Text),
        sa.Column("tool_calls", JSONB, nullable=False),
        sa.Column("usage", JSONB, nullable=False),
        sa.Column("explanation", JSONB, nullable=False),
        sa.Column("approval_run_id", sa.Text),
        sa.Column("deadline_at", timestamp),
        sa.Column("verdict", sa.Text),
        sa.Column("approver", sa.Text),
        sa.Column("verdict_at", timestamp),
        sa.Column("source_topic", sa.Text, nullable=False),
        sa.Column("source_partition", sa.BigInteger, nullable=False),
        sa.Column("source_offset", sa.BigInteger, nullable=False),
        sa.Column("source_timestamp", timestamp),
        sa.Column("decided_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.Column("executed_at", timestamp),
        sa.PrimaryKeyConstraint("decision_id", name="pk_decisions"),
        sa.UniqueConstraint("request_id", name="uq_decisions_request_id"),
        sa.CheckConstraint(SEVERITIES, name=op.f("ck_decisions_severity")),
        sa.CheckConstraint("risk in ('low', 'high')", name=op.f("ck_decisions_risk")),
        sa.CheckConstraint(STATES, name=op.f("ck_decisions_state")),
        sa.CheckConstraint("engine in ('llm', 'offline')", name=op.f("ck_decisions_engine")),
        sa.CheckConstraint("verdict in ('approved', 'rejected', 'expired')", name=op.f("ck_decisions_verdict")),
        sa.CheckConstraint(APPROVED, name=op.f("ck_decisions_approved")),
        sa.CheckConstraint(
            "state <> 'awaiting_approval' or deadline_at is not null", name=op.f("ck_decisions_deadline")
        ),
    )
    op.create_index("ix_decisions_decided_at", "decisions", ["decided_at"])
    op.create_index("ix_decisions_customer", "decisions", ["customer_id", "decided_at"])
    op.create_index("ix_decisions_district", "decisions", ["district_id", "decided_at"])
    op.create_index(
        "ix_decisions_awaiting", "decisions", ["decided_at"], postgresql_where=sa.text("state = 'awaiting_approval'")
    )
    op.create_table(
        "work_orders",
        sa.Column("work_order_id", sa.Text, nullable=False),
        sa.Column("decision_id", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target_kind", sa.Text, nullable=False),
        sa.Column("target_id", sa.Text, nullable=False),
        sa.Column("district_id", sa.Text),
        sa.Column("severity", sa.Text, nullable=False),
        sa.Column("basis", sa.Text, nullable=False),
        sa.Column("created_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("work_order_id", name="pk_work_orders"),
        sa.UniqueConstraint("decision_id", name="uq_work_orders_decision_id"),
        sa.ForeignKeyConstraint(["decision_id"], ["decisions.decision_id"], name="fk_work_orders_decision_id"),
        sa.CheckConstraint(SEVERITIES, name=op.f("ck_work_orders_severity")),
        sa.CheckConstraint(
            "basis in ('low_risk', 'approved', 'rejected', 'expired', 'refused')", name=op.f("ck_work_orders_basis")
        ),
    )
    op.create_index("ix_work_orders_created_at", "work_orders", ["created_at"])


def downgrade() -> None:
    op.drop_table("work_orders")
    op.drop_table("decisions")
