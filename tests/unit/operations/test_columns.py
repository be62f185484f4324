"""The code of the previous release can read and write the tables of this release."""

from __future__ import annotations

import pytest
from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, MetaData, Table, UniqueConstraint, text

from tests.unit.operations.columns import declared, lines, refused, released, unlisted


def test_code_of_the_previous_release_can_use_the_new_tables():
    found = refused(released(), lines(declared().tables.values()))
    assert not found, (
        f"tasks of the last release would fail on these tables: {found}. A new column is nullable or has a default; an "
        "old one is removed or renamed a release after the code stopped using it; a new unique key, CHECK or foreign "
        "key comes a release after the code that keeps it (docs/deployment.md, Releases)"
    )


def test_every_column_and_rule_is_listed():
    missing = unlisted(released(), lines(declared().tables.values()))
    assert not missing, f"run `.venv/bin/python -m tests.unit.operations.columns`, and commit the lists: {missing}"


BEFORE = {"orders.id BIGINT default", "orders.note TEXT null", "orders.size BIGINT", "orders: unique (id)"}


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (BEFORE | {"orders.place TEXT null", "orders.count BIGINT default", "places.name TEXT"}, []),
        (BEFORE - {"orders.size BIGINT"} | {"orders.size BIGINT null"}, []),
        (BEFORE | {"orders.place TEXT"}, ["orders.place TEXT: is new and must be given"]),
        (BEFORE - {"orders.note TEXT null"}, ["orders.note TEXT null: is gone or has changed"]),
        (BEFORE - {"orders.note TEXT null"} | {"orders.note TEXT"}, ["orders.note TEXT null: is gone or has changed"]),
        (BEFORE - {"orders: unique (id)"}, ["orders: unique (id): is gone or has changed"]),
    ],
)
def test_a_change_that_breaks_the_previous_release_is_named(now, expected):
    assert refused(BEFORE, now) == expected


def orders(*more) -> set[str]:
    """The lines of the table of orders, with more columns or rules."""
    metadata = MetaData()
    Table("places", metadata, Column("id", BigInteger, primary_key=True))
    Table("orders", metadata, *(Column(name, BigInteger, primary_key=name == "id") for name in ("id", "size")), *more)
    return lines(metadata.tables.values())


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ([UniqueConstraint("size")], "orders: unique (size)"),
        ([Index("by_size", "size", unique=True)], "orders: unique (size)"),
        ([Index("one_at_a_time", "size", unique=True, postgresql_where=text("size > 1"))],
         "orders: unique (size) where size > 1"),
        ([Index("by_sign", text("sign(size)"), unique=True)], "orders: unique (sign(size))"),
        ([CheckConstraint("size > 0")], "orders: check (size > 0)"),
        ([Column("place", BigInteger, ForeignKey("places.id"), nullable=False, server_default="1")],
         "orders: foreign key (place) references places (id)"),
        # A unique key of a new column with a default, which the old code leaves out: two rows would have the same key.
        ([Column("place", BigInteger, nullable=False, server_default="1", unique=True)], "orders: unique (place)"),
    ],
)  # fmt: skip
def test_a_new_rule_of_an_old_table_is_refused_and_not_listed_by_the_command(more, rule):
    now = orders(*more)
    assert refused(orders(), now) == [f"{rule}: is a new rule, and the code before may break it"]
    assert rule not in unlisted(orders(), now)
    # If the table is new too, the rule is allowed.
    assert refused({"places.id BIGINT", "places: unique (id)"}, now) == []


def test_a_new_rule_of_a_column_that_old_code_leaves_null_is_allowed():
    now = orders(Column("place", BigInteger, ForeignKey("places.id"), unique=True))
    new = [
        "orders.place BIGINT null", "orders: foreign key (place) references places (id)", "orders: unique (place)",
    ]  # fmt: skip
    assert refused(orders(), now) == []
    assert unlisted(orders(), now) == new


def test_the_command_does_not_list_a_new_required_column():
    assert unlisted(orders(), orders(Column("place", BigInteger, nullable=False))) == []


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (CheckConstraint("size > 0"), CheckConstraint("size > 1")),
        (Index("one", "size", unique=True, postgresql_where=text("size > 1")), Index("one", "size", unique=True)),
    ],
)
def test_a_changed_rule_counts_as_a_new_rule(before, now):
    assert len(refused(orders(before), orders(now))) == 2
