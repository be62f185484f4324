"""Private names of other packages may change with any release: only include/streams/compat uses and checks them."""

import ast
import re
from functools import cache

import pytest

from tests.unit.compat.private_names import PUBLIC, ROOT, definitions, own_files, private_uses


@cache
def all_uses() -> tuple[tuple[str, str], ...]:
    """("file:line", name) of each private name of another package that the project uses outside of compat."""
    trees = {path: ast.parse(path.read_text()) for path in own_files()}
    defined: dict[str, set[str]] = {}
    for tree in trees.values():
        for name, names in definitions(tree).items():
            defined.setdefault(name, set()).update(names)
    return tuple(
        (f"{path.relative_to(ROOT)}:{line}", name)
        for path, tree in trees.items()
        for line, name in private_uses(tree, defined)
    )


def test_only_compat_uses_private_names_of_other_packages():
    private = [use for use in all_uses() if not any(re.fullmatch(public, use[1]) for public in PUBLIC)]
    assert private == [], "move it to include/streams/compat, with a check, and list it there"


@pytest.mark.parametrize("public", PUBLIC)
def test_each_exemption_is_needed(public):
    assert any(re.fullmatch(public, name) for _, name in all_uses())


def private_names(source: str) -> list[str]:
    tree = ast.parse(source)
    return [name for _, name in private_uses(tree, definitions(tree))]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import logging\nlogging._lock", ["logging._lock"]),
        ("import os.path\nos.path._joinrealpath", ["os.path._joinrealpath"]),
        ("def f(table): return table._io", ["table._io"]),
        ("def f(table): return table.io()._fs", ["table.io()._fs"]),
        ("def f(table): return getattr(table, '_io', None)", ["_io"]),
        ("from logging import _lock", ["_lock"]),
        ("from concurrent.futures._base import Future", ["_base"]),
        ("import importlib._bootstrap", ["_bootstrap"]),
        # The base class calls an override only as long as its own method has this name.
        ("from threading import Thread\nclass T(Thread):\n    def _bootstrap(self): ...", ["T._bootstrap"]),
        ("import threading\nclass T(threading.Thread):\n    def _delete(self): ...", ["T._delete"]),
        ("from threading import Thread\nclass T(Thread):\n    def run(self): self._target()", ["self._target of T"]),
        ("from threading import Thread\nclass T(Thread):\n    def run(self): self._delete()", ["self._delete of T"]),
    ],
)  # fmt: skip
def test_a_private_name_of_another_package_is_found(source, names):
    assert private_names(source) == names


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n    def __init__(self): self._a = 1\n    def b(self): return self._a",
        "class A:\n    _a = 1\n    @classmethod\n    def b(cls, other): return cls._a, other._a",
        "from include.streams.kafka import replay\nreplay._columns",
        "from include.streams.contracts import Contract\nContract._version_is_an_integer",
        "from include.streams.contracts.types import _to_utc",
        "from threading import Thread\nclass T(Thread):\n    def __init__(self): self._mine = 1\n"
        "    def run(self): return self._mine",
        "from enum import Enum\nclass E(Enum):\n    @classmethod\n    def _missing_(cls, value): ...",
        "def f(thing): return thing.__class__",
    ],
)  # fmt: skip
def test_private_names_of_our_own_code_are_allowed(source):
    assert private_names(source) == []
