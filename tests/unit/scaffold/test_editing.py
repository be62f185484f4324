"""Changes of modules that somebody has written."""

from __future__ import annotations

import pytest

from scaffold.editing import merged, with_argument, without_package
from scaffold.errors import Refused

TOPICS = '''"""Topics."""

from include.streams import Registry, Topic


class Order:
    """An order."""


# The comment stays.
ORDERS = Topic("orders")
TOPICS = Registry(ORDERS)
'''


def test_a_definition_stands_above_the_list_that_gets_it():
    added = (
        "from datetime import timedelta\n\nclass Return:\n    pass\n\n# Theirs.\nRETURNS = Topic(1)\n\n"
        "TOPICS = Registry(RETURNS)\n"
    )
    found = merged(TOPICS, added, "topics.py")
    assert (
        found.index("import timedelta")
        < found.index("class Order")
        < found.index("ORDERS =")
        < found.index("class Return")
    )
    assert found.index("# Theirs.\nRETURNS = Topic(1)") < found.index("TOPICS = Registry(ORDERS, RETURNS)")
    assert "# The comment stays.\nORDERS" in found


@pytest.mark.parametrize(
    ("before", "added", "after"),
    [
        ("P = Package(a=(A,))", "P = Package(a=(B,), b=(C,))", "P = Package(a=(A,B,), b=(C,))"),
        ("P = Package(a=())", "P = Package(a=(B,))", "P = Package(a=(B,))"),
        ("P = Package(a=ALL)", "P = Package(a=(B,))", "P = Package(a=(*ALL, B))"),
        ("P = Package(a=ALL)", "P = Package(a=ALL)", "P = Package(a=ALL)"),
        ("P = Package(a='é', b=(A,))", "P = Package(a='é', b=(A, B))", "P = Package(a='é', b=(A,B,))"),
        (
            "P = Package(d=Demo(r={'x': {'a': 1}}))",
            "P = Package(d=Demo(r={'x': {'b': 2}}))",
            "P = Package(d=Demo(r={'x': {'a': 1, 'b': 2}}))",
        ),
        ("P = Package(r={})", 'P = Package(r={"b": """\n x\n"""})', 'P = Package(r={"b": """\n x\n"""})'),
        ("P = (\n    A,\n)", "P = (B,)", "P = (\n    A,\nB,)"),
    ],
)
def test_a_declaration_gets_what_it_lacks(before: str, added: str, after: str):
    assert merged(before, added, "package.py") == after
    # A second time, nothing is missing.
    assert merged(after, added, "package.py") == after


@pytest.mark.parametrize("added", ["ORDERS = Topic('others')", "class Order:\n    x = 1"])
def test_another_definition_of_one_name_is_refused(added: str):
    with pytest.raises(Refused, match=r"topics\.py already has a different (ORDERS|Order)"):
        merged(TOPICS, added, "topics.py")


def test_a_package_gets_its_line_in_the_project_and_loses_it():
    before = "from include.streams import Project\nfrom include.shop.package import SHOP\n\nPROJECT = Project(SHOP)\n"
    after = with_argument(before, "PROJECT", "GITHUB")
    assert after.endswith("PROJECT = Project(SHOP, GITHUB)\n")
    left = without_package(after, "shop")
    assert left == "from include.streams import Project\n\nPROJECT = Project(GITHUB)\n"
    assert without_package(left, "shop") == left
    assert with_argument("PROJECT = Project()\n", "PROJECT", "SHOP") == "PROJECT = Project(SHOP)\n"
