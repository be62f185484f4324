"""consumers, positions, claims, inbox, outbox, alarms

A revision records a past change, so it defines the tables itself and does not import `tables.py`. A test compares the
migrated database with `tables.py`.
"""

import sqlalchemy as sa
from alembic import op

revision = "operations_0001"
down_revision = None
branch_labels = ("operations",)
depends_on = None

timestamp = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "consumers",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_consumers"),
    )
    op.create_table(
        "positions",
        sa.Column("consumer", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("partition", sa.BigInteger, nullable=False),
        sa.Column("topic_id", sa.Text, nullable=False),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("consumer", "topic", "partition", name="pk_positions"),
        sa.ForeignKeyConstraint(["consumer"], ["consumers.name"], name="fk_positions_consumer"),
    )
    op.create_table(
        "claims",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("consumer", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("claimed_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.Column("closed_at", timestamp),
        sa.PrimaryKeyConstraint("id", name="pk_claims"),
        sa.UniqueConstraint("consumer", "run_id", name="uq_claims_consumer_run_id"),
        sa.ForeignKeyConstraint(["consumer"], ["consumers.name"], name="fk_claims_consumer"),
    )
    op.create_index(
        "ix_claims_open", "claims", ["consumer", "claimed_at"], postgresql_where=sa.text("closed_at is null")
    )
    op.create_table(
        "claim_ranges",
        sa.Column("claim_id", sa.BigInteger, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("partition", sa.BigInteger, nullable=False),
        sa.Column("topic_id", sa.Text, nullable=False),
        sa.Column("start_offset", sa.BigInteger, nullable=False),
        sa.Column("readable_from", sa.BigInteger, nullable=False),
        sa.Column("end_offset", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("claim_id", "topic", "partition", name="pk_claim_ranges"),
        sa.ForeignKeyConstraint(["claim_id"], ["claims.id"], name="fk_claim_ranges_claim_id", ondelete="CASCADE"),
        sa.CheckConstraint(
            "start_offset <= readable_from and readable_from <= end_offset",
            name=op.f("ck_claim_ranges_ordered"),
        ),
    )
    op.create_table(
        "handled_ranges",
        sa.Column("claim_id", sa.BigInteger, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("partition", sa.BigInteger, nullable=False),
        sa.Column("start_offset", sa.BigInteger, nullable=False),
        sa.Column("end_offset", sa.BigInteger, nullable=False),
        sa.Column("lost", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("handled_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint(
            "claim_id", "topic", "partition", "start_offset", "end_offset", name="pk_handled_ranges"
        ),
        sa.ForeignKeyConstraint(["claim_id"], ["claims.id"], name="fk_handled_ranges_claim_id", ondelete="CASCADE"),
    )
    op.create_table(
        "inbox",
        sa.Column("consumer", sa.Text, nullable=False),
        sa.Column("topic_id", sa.Text, nullable=False),
        sa.Column("partition", sa.BigInteger, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("contract", sa.Text, nullable=False),
        sa.Column("event_id", sa.Text),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("detail", sa.Text),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("recorded_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("consumer", "topic_id", "partition", "offset", name="pk_inbox"),
        sa.CheckConstraint("outcome in ('handled', 'duplicate', 'dead_letter')", name=op.f("ck_inbox_outcome")),
    )
    op.create_index(
        "uq_inbox_event",
        "inbox",
        ["consumer", "contract", "event_id"],
        unique=True,
        postgresql_where=sa.text("outcome = 'handled'"),
    )
    op.create_index("ix_inbox_recorded_at", "inbox", ["recorded_at"])
    op.create_table(
        "outbox",
        sa.Column("sequence", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("id", sa.Uuid, server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("consumer", sa.Text, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("destination", sa.Text, nullable=False),
        sa.Column("key", sa.LargeBinary),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.String(16), server_default="pending", nullable=False),
        sa.Column("attempts", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("last_error", sa.Text),
        sa.Column("created_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.Column("delivered_at", timestamp),
        sa.PrimaryKeyConstraint("sequence", name="pk_outbox"),
        sa.UniqueConstraint("id", name="uq_outbox_id"),
        sa.CheckConstraint("state in ('pending', 'delivered', 'skipped', 'failed')", name=op.f("ck_outbox_state")),
        sa.CheckConstraint("kind in ('message', 'request')", name=op.f("ck_outbox_kind")),
    )
    op.create_index(
        "ix_outbox_pending", "outbox", ["consumer", "sequence"], postgresql_where=sa.text("state = 'pending'")
    )
    op.create_table(
        "alarms",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("opened_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.Column("closed_at", timestamp),
        sa.PrimaryKeyConstraint("id", name="pk_alarms"),
    )
    op.create_index(
        "uq_alarms_open",
        "alarms",
        ["source", "kind"],
        unique=True,
        postgresql_where=sa.text("closed_at is null"),
    )


def downgrade() -> None:
    for table in (
        "alarms",
        "outbox",
        "inbox",
        "handled_ranges",
        "claim_ranges",
        "claims",
        "positions",
        "consumers",
    ):
        op.drop_table(table)
