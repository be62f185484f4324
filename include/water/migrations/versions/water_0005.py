"""confirmed_leaks, judged_nights, leaks"""

import sqlalchemy as sa
from alembic import op

revision = "water_0005"
down_revision = "water_0004"
branch_labels = None
depends_on = None

timestamp = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "confirmed_leaks",
        sa.Column("district_id", sa.Text, nullable=False),
        sa.Column("first_night", sa.Date, nullable=False),
        sa.Column("last_night", sa.Date),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("confirmed_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("district_id", "first_night", name="pk_confirmed_leaks"),
        sa.CheckConstraint("first_night <= last_night", name=op.f("ck_confirmed_leaks_ordered")),
    )
    op.create_table(
        "judged_nights",
        sa.Column("district_id", sa.Text, nullable=False),
        sa.Column("night", sa.Date, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("score", sa.Float, nullable=False),
        sa.Column("alarm", sa.Boolean, nullable=False),
        sa.Column("judged_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("district_id", "night", name="pk_judged_nights"),
    )
    op.create_table(
        "leaks",
        sa.Column("leak_key", sa.Text, nullable=False),
        sa.Column("district_id", sa.Text, nullable=False),
        sa.Column("night", sa.Date, nullable=False),
        sa.Column("litres_per_hour", sa.Float, nullable=False),
        sa.Column("confidence", sa.Float, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("reported_as", sa.Text, nullable=False),
        sa.Column("detected_at", timestamp, server_default=sa.func.now(), nullable=False),
        sa.Column("produced_at", timestamp),
        sa.PrimaryKeyConstraint("leak_key", name="pk_leaks"),
        sa.ForeignKeyConstraint(["reported_as"], ["leaks.leak_key"], name="fk_leaks_reported_as"),
        sa.CheckConstraint("litres_per_hour > 0", name=op.f("ck_leaks_litres")),
        sa.CheckConstraint("confidence between 0 and 1", name=op.f("ck_leaks_confidence")),
    )
    op.create_index("ix_leaks_district_night", "leaks", ["district_id", "night"])
    op.create_index(
        "ix_leaks_unproduced",
        "leaks",
        ["detected_at"],
        postgresql_where=sa.text("reported_as = leak_key and produced_at is null"),
    )


def downgrade() -> None:
    op.drop_table("leaks")
    op.drop_table("judged_nights")
    op.drop_table("confirmed_leaks")
