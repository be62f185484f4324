"""`from include.streams import ...`: what a user of the library may rely on."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from include import streams

PROJECT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", streams.__all__)
def test_every_public_name_is_found_and_documented(name):
    found = getattr(streams, name)
    # A constant has no docstring of its own.
    assert name.isupper() or found.__doc__


def test_what_type_checkers_see_is_what_is_imported():
    (block,) = (node for node in ast.parse(Path(streams.__file__).read_text()).body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name: (node.module, alias.name) for node in block.body for alias in node.names}
    assert set(seen) == set(streams.__all__) == set(streams._DEFINED_IN)
    for name, (module, attribute) in seen.items():
        parent = importlib.import_module(module)
        assert getattr(parent, attribute, None) is getattr(streams, name), name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'include\.streams' has no attribute 'Consumers'"):
        _ = streams.Consumers


def test_importing_the_library_imports_none_of_it():
    program = "import sys, include.streams; print([m for m in sys.modules if m.startswith('include.streams.')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert done.stdout.strip() == "[]"
