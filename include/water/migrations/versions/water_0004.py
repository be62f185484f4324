"""register_files, register_sites, register_customers"""

import sqlalchemy as sa
from alembic import op

revision = "water_0004"
down_revision = "water_0003"
branch_labels = None
depends_on = None

timestamp = sa.DateTime(timezone=True)


def _source() -> list[sa.Column]:
    return [
        sa.Column("object_name", sa.Text, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("uploaded_at", timestamp, nullable=False),
        sa.Column("imported_at", timestamp, server_default=sa.func.now(), nullable=False),
    ]


def upgrade() -> None:
    op.create_table(
        "register_files",
        sa.Column("object_name", sa.Text, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("stored_as", sa.Text, nullable=False),
        sa.Column("uploaded_at", timestamp, nullable=False),
        sa.Column("recorded_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("object_name", "generation", name="pk_register_files"),
        sa.CheckConstraint("kind in ('sites', 'customers')", name=op.f("ck_register_files_kind")),
        sa.CheckConstraint("state in ('applied', 'rejected')", name=op.f("ck_register_files_state")),
    )
    op.create_index("ix_register_files_recorded_at", "register_files", ["recorded_at"])
    op.create_table(
        "register_sites",
        sa.Column("site_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("district_id", sa.Text, nullable=False),
        sa.Column("latitude", sa.Float, nullable=False),
        sa.Column("longitude", sa.Float, nullable=False),
        *_source(),
        sa.PrimaryKeyConstraint("site_id", name="pk_register_sites"),
    )
    op.create_table(
        "register_customers",
        sa.Column("customer_id", sa.Text, nullable=False),
        sa.Column("meter_id", sa.Text, nullable=False),
        sa.Column("district_id", sa.Text, nullable=False),
        sa.Column("persons", sa.BigInteger, nullable=False),
        *_source(),
        sa.PrimaryKeyConstraint("customer_id", name="pk_register_customers"),
    )
    op.create_index("ix_register_customers_meter_id", "register_customers", ["meter_id"])


def downgrade() -> None:
    for table in ("register_customers", "register_sites", "register_files"):
        op.drop_table(table)
