"""The code of the release before can read and write the tables of this one."""

from __future__ import annotations

import pytest

from tests.unit.operations.columns import declared, lines, refused, released


def test_the_code_before_can_use_the_tables_after():
    found = refused(released(), lines(declared().tables.values()))
    assert not found, (
        f"tasks of the last release would fail on these tables: {found}. A new column is nullable or has a default; an "
        "old one is removed or renamed a release after the code stopped using it (docs/deployment.md, Releases)"
    )


def test_every_column_is_listed():
    names = {line.split()[0] for line in released()}
    unlisted = sorted(line for line in lines(declared().tables.values()) if line.split()[0] not in names)
    assert not unlisted, f"run `.venv/bin/python -m tests.unit.operations.columns`, and commit the lists: {unlisted}"


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
def test_what_the_code_before_cannot_use_is_named(now, expected):
    assert refused(BEFORE, now) == expected
