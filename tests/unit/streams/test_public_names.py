"""`from include.streams import ...`: the names on which a user of the library may rely."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from include import streams

PROJECT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", streams.__all__)
def test_every_public_name_is_found_and_documented(name):
    found = getattr(streams, name)
    # A constant has no docstring of its own.
    assert name.isupper() or found.__doc__


def public_functions() -> Iterator[tuple[str, Callable]]:
    """(name, function) of every public function, method of a public class and function of a public module."""
    for name in streams.__all__:
        found = getattr(streams, name)
        if inspect.isfunction(found):
            yield name, found
        elif inspect.isclass(found) or inspect.ismodule(found):
            home = found if inspect.ismodule(found) else inspect.getmodule(found)
            for other, value in vars(found).items():
                function = getattr(value, "__func__", value)
                # Methods that a base class documents, such as Airflow's, need no docstring here.
                inherited = inspect.isclass(found) and any(hasattr(base, other) for base in found.__mro__[1:])
                if inspect.isfunction(function) and inspect.getmodule(function) is home and not inherited:
                    yield f"{name}.{other}", function


def undocumented(name: str, function: Callable) -> Iterator[str]:
    """The omissions of the function's docstring."""
    text = inspect.getdoc(function) or ""
    if not text:
        yield f"{name} has no docstring"
    signature = inspect.signature(function)
    parameters = [parameter for parameter in signature.parameters if parameter not in ("self", "cls")]
    block = text.partition("Args:\n")[2].partition("\n\n")[0]
    for parameter in parameters:
        if f"    {parameter}: " not in block:
            yield f"{name}: say in Args what {parameter} is"
    returns = signature.return_annotation not in (None, "None", signature.empty)
    if parameters and returns and "Returns:\n" not in text and "Yields:\n" not in text:
        yield f"{name}: say in Returns what it returns"


def test_arguments_and_results_of_public_functions_are_documented():
    functions = {name: function for name, function in public_functions() if "._" not in name}
    assert {"claim_messages", "Topic.parse", "outbox.add_message"} <= set(functions)
    assert [sentence for name, function in functions.items() for sentence in undocumented(name, function)] == []


def test_a_docstring_without_an_argument_or_result_is_reported():
    def half(one: int, two: int) -> int:
        """Add.

        Args:
            one: The first.
        """
        return one + two

    assert list(undocumented("half", half)) == ["half: say in Args what two is", "half: say in Returns what it returns"]


def test_type_checkers_see_the_names_that_are_imported():
    (block,) = (node for node in ast.parse(Path(streams.__file__).read_text()).body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name: (node.module, alias.name) for node in block.body for alias in node.names}
    assert set(seen) == set(streams.__all__) == set(streams._DEFINED_IN)
    for name, (module, attribute) in seen.items():
        parent = importlib.import_module(module)
        assert getattr(parent, attribute, None) is getattr(streams, name), name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'include\.streams' has no attribute 'Consumers'"):
        _ = streams.Consumers


def test_importing_the_library_imports_no_module_of_it():
    program = "import sys, include.streams; print([m for m in sys.modules if m.startswith('include.streams.')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert done.stdout.strip() == "[]"
