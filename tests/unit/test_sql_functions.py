"""A package can replace functions of SQLAlchemy's `func` in every process that imports the package."""

import re
from pathlib import Path

import pytest
from sqlalchemy.sql import functions

INCLUDE = Path(__file__).resolve().parents[2] / "include"


def test_no_sql_function_is_used_that_the_google_provider_replaces():
    pytest.importorskip("sqlalchemy_bigquery", reason="it comes with the Google provider")
    registered = functions._registry["_default"]
    replaced = {name for name, kind in registered.items() if not kind.__module__.startswith("sqlalchemy.")}
    assert "unnest" in replaced
    used = {
        (path.relative_to(INCLUDE).as_posix(), name)
        for path in INCLUDE.rglob("*.py")
        for name in re.findall(r"\bfunc\.(\w+)\(", path.read_text())
    }
    assert used
    assert not {(path, name) for path, name in used if name.lower() in replaced}
