"""replaced_hours"""

import sqlalchemy as sa
from alembic import op

revision = "water_0006"
down_revision = "water_0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "replaced_hours",
        sa.Column("claim_id", sa.BigInteger, nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("claim_id", "hour", name="pk_replaced_hours"),
        sa.ForeignKeyConstraint(["claim_id"], ["claims.id"], name="fk_replaced_hours_claim_id", ondelete="CASCADE"),
    )


def downgrade() -> None:
    op.drop_table("replaced_hours")
