"""dead_letters, dead_letter_positions: an index of the dead-letter topics, for the Streams page"""

import sqlalchemy as sa
from alembic import op

revision = "operations_0020"
down_revision = "operations_0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("topic_id", sa.Text, primary_key=True),
        sa.Column("partition", sa.BigInteger, primary_key=True),
        sa.Column("offset", sa.BigInteger, primary_key=True),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("written_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("writer", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("detail", sa.Text),
        sa.Column("consumer", sa.Text),
        sa.Column("source_partition", sa.BigInteger),
        sa.Column("source_offset", sa.BigInteger),
        sa.Column("source_timestamp", sa.Text),
        sa.Column("run_id", sa.Text),
        sa.Column("key_digest", sa.LargeBinary),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_dead_letters_written_at", "dead_letters", ["written_at"])
    op.create_index("ix_dead_letters_topic", "dead_letters", ["topic", "written_at"])
    op.create_index("ix_dead_letters_key_digest", "dead_letters", ["key_digest"])
    op.create_table(
        "dead_letter_positions",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("partition", sa.BigInteger, primary_key=True),
        sa.Column("topic_id", sa.Text, nullable=False),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("dead_letter_positions")
    op.drop_table("dead_letters")
