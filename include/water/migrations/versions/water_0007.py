"""earthquakes"""

import sqlalchemy as sa
from alembic import op

revision = "water_0007"
down_revision = "water_0006"
branch_labels = None
depends_on = None

timestamp = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "earthquakes",
        sa.Column("seismic_id", sa.Text, nullable=False),
        sa.Column("updated_at", timestamp, nullable=False),
        sa.Column("occurred_at", timestamp, nullable=False),
        sa.Column("magnitude", sa.Float),
        sa.Column("magnitude_type", sa.Text),
        sa.Column("depth_km", sa.Float),
        sa.Column("latitude", sa.Float, nullable=False),
        sa.Column("longitude", sa.Float, nullable=False),
        sa.Column("place", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("seismic_id", name="pk_earthquakes"),
    )
    op.create_index("ix_earthquakes_updated_at", "earthquakes", ["updated_at"])


def downgrade() -> None:
    op.drop_table("earthquakes")
