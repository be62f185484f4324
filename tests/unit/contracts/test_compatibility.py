"""Each rule of compatibility: a change of a contract, and the rule that reports it."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from include.streams.contracts import Contract, Registry, Topic, schemas
from include.streams.contracts.compatibility import Change, Rule, baselines, breaks_since, compare
from include.streams.contracts.types import Identifier
from tests.unit.contracts.orders import ORDERS, ORDERS_V2, OrderV1

Schema = dict[str, Any]
OLD = schemas.schema(ORDERS)


def changed(edit: Callable[[Schema], object], old: Schema = OLD) -> list[Change]:
    new = copy.deepcopy(old)
    edit(new)
    return compare(old, new)


def field(document: Schema, name: str) -> Schema:
    return document["properties"][name]


def remove(document: Schema, name: str) -> None:
    del document["properties"][name]
    document["required"] = [other for other in document["required"] if other != name]


def add(document: Schema, name: str, required: bool) -> None:
    document["properties"][name] = {"type": "string", "maxLength": 5}
    if required:
        document["required"].append(name)


@pytest.mark.parametrize(
    ("edit", "rule", "path"),
    [
        (lambda new: remove(new, "price"), Rule.field_removed, "price"),
        (lambda new: remove(new, "note"), Rule.field_removed, "note"),
        (lambda new: add(new, "colour", required=True), Rule.required_field_added, "colour"),
        (lambda new: add(new, "colour", required=False), Rule.optional_field_added, "colour"),
        (lambda new: new["required"].append("note"), Rule.field_made_required, "note"),
        (lambda new: new["required"].remove("price"), Rule.field_made_optional, "price"),
        (lambda new: field(new, "note")["anyOf"].pop(), Rule.null_forbidden, "note"),
        (
            lambda new: new["properties"].update(
                price={"anyOf": [field(new, "price"), {"type": "null"}]},
            ),
            Rule.null_allowed,
            "price",
        ),
        (lambda new: field(new, "price").update(type="string"), Rule.type_changed, "price"),
        (lambda new: new["$defs"]["Kind"]["enum"].remove("trade"), Rule.enum_value_removed, "kind"),
        (lambda new: new["$defs"]["Kind"]["enum"].append("gift"), Rule.enum_value_added, "kind"),
        (lambda new: new["$defs"]["Kind"].pop("enum"), Rule.bound_widened, "kind"),
        (lambda new: field(new, "order_id").update(enum=["a"]), Rule.bound_narrowed, "order_id"),
        (lambda new: field(new, "quantity").update(minimum=2), Rule.bound_narrowed, "quantity"),
        (lambda new: field(new, "quantity").update(maximum=999), Rule.bound_narrowed, "quantity"),
        (lambda new: field(new, "quantity").update(exclusiveMaximum=999), Rule.bound_narrowed, "quantity"),
        (lambda new: field(new, "order_id").update(maxLength=99), Rule.bound_narrowed, "order_id"),
        (lambda new: field(new, "order_id").update(minLength=1), Rule.bound_narrowed, "order_id"),
        (lambda new: field(new, "note")["anyOf"][0].update(maxLength=49), Rule.bound_narrowed, "note"),
        (lambda new: field(new, "quantity").update(minimum=0), Rule.bound_widened, "quantity"),
        (lambda new: field(new, "quantity").update(maximum=1001), Rule.bound_widened, "quantity"),
        (lambda new: field(new, "quantity").pop("maximum"), Rule.bound_widened, "quantity"),
        (lambda new: field(new, "order_id").update(pattern="^x$"), Rule.pattern_changed, "order_id"),
        (lambda new: field(new, "note").update(default="none"), Rule.default_changed, "note"),
        (lambda new: field(new, "price").update(multipleOf=0.5), Rule.constraint_changed, "price"),
        (lambda new: new.update(additionalProperties=True), Rule.constraint_changed, ""),
        (lambda new: new.update({"x-kafka-key": "quantity"}), Rule.key_changed, ""),
        (lambda new: new.update(title="Order"), Rule.name_changed, ""),
    ],
)
def test_each_change_is_reported_by_its_rule_and_path(edit: Callable[[Schema], object], rule: Rule, path: str):
    changes = changed(edit)
    assert [(change.rule, change.path) for change in changes] == [(rule, path)]
    assert changes[0].breaking == (rule is not Rule.optional_field_added)


def test_every_rule_has_a_case_above():
    marks = getattr(test_each_change_is_reported_by_its_rule_and_path, "pytestmark", [])
    of_unions = {Rule.type_added, Rule.type_removed, Rule.union_changed}  # tests/unit/contracts/test_foreign_schemas.py
    assert {case[1] for mark in marks for case in mark.args[1]} == set(Rule) - of_unions


@pytest.mark.parametrize(
    "edit",
    [
        lambda new: None,
        lambda new: new.update(description="other words"),
        lambda new: field(new, "price").update(description="in euros", examples=[1.5]),
        lambda new: new["properties"].update(sorted(new["properties"].items())),
        lambda new: new["required"].reverse(),
        lambda new: new["$defs"]["Kind"]["enum"].reverse(),
        lambda new: new["properties"].update(kind={"enum": ["retail", "trade"], "type": "string"}),
    ],
)
def test_new_descriptions_another_order_and_moved_definitions_are_no_change(edit: Callable[[Schema], object]):
    assert changed(edit) == []


def test_changes_inside_lists_and_objects_are_found_with_their_path():
    old = schemas.schema(ORDERS_V2)
    changes = changed(lambda new: remove(new["$defs"]["Position"], "quantity"), old)
    assert [str(change) for change in changes] == [
        "field_removed at positions[].quantity: messages of the past and running producers have it"
    ]
    changes = changed(lambda new: field(new, "positions").update(maxItems=5), old)
    assert [(change.rule, change.path) for change in changes] == [(Rule.bound_narrowed, "positions")]


def test_another_version_in_the_same_topic_is_not_compatible():
    rules = {change.rule for change in compare(OLD, schemas.schema(ORDERS_V2))}
    assert {Rule.enum_value_removed, Rule.field_removed, Rule.required_field_added} <= rules


class OrderWithColour(OrderV1):
    contract_name = "OrderV1"
    colour: Identifier | None = None


class OrderWithLowerLimit(OrderV1):
    contract_name = "OrderV1"
    quantity: Annotated[int, Field(ge=1, le=500)]


def registry(contract: type[Contract]) -> Registry:
    return Registry(Topic("orders", contract, key="order_id", partitions=1, retention=None))


@pytest.fixture
def history(tmp_path: Path):
    """A repository on its main branch, and a function that commits the schemas of a registry."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(topics: Registry | None = None) -> str:
        if topics is not None:
            schemas.write(topics, tmp_path / "contracts")
            git("add", ".")
        git("commit", "-q", "--allow-empty", "-m", "a commit")
        return git("rev-parse", "HEAD")

    git("init", "-q", "-b", "main")
    return tmp_path / "contracts", commit, git


def test_a_change_is_compared_with_the_committed_schema(history):
    folder, commit, _ = history
    first = commit(registry(OrderV1))
    assert breaks_since(registry(OrderV1), folder, first) == []
    assert breaks_since(registry(OrderWithColour), folder, first) == []
    (found,) = breaks_since(registry(OrderWithLowerLimit), folder, first)
    assert str(found) == (
        f"orders.v1.json, compared with commit {first}: bound_narrowed at quantity: maximum 1000 -> 500. "
        "Only an optional field may be added within a version: make a new version of the topic instead"
    )


class Renamed(OrderV1):
    pass


def test_a_renamed_class_must_declare_its_former_name(history):
    folder, commit, _ = history
    first = commit(registry(OrderV1))
    (found,) = breaks_since(registry(Renamed), folder, first)
    assert "name_changed at (message): 'OrderV1' -> 'Renamed'" in str(found)
    assert "declare the former name as `contract_name`" in str(found)


def test_a_new_topic_and_a_new_version_are_not_compared(history):
    folder, commit, _ = history
    first = commit(Registry(ORDERS))
    assert breaks_since(Registry(ORDERS, ORDERS_V2), folder, first) == []


def test_on_the_main_branch_a_committed_change_is_still_found(history):
    folder, commit, _ = history
    first = commit(registry(OrderV1))
    assert baselines(folder) == [first]
    second = commit(registry(OrderWithLowerLimit))
    assert baselines(folder) == [second, first]
    assert breaks_since(registry(OrderWithLowerLimit), folder, first)


def test_on_a_branch_schemas_are_compared_with_the_merge_base(history):
    folder, commit, git = history
    first = commit(registry(OrderV1))
    git("checkout", "-q", "-b", "topic")
    commit(registry(OrderWithLowerLimit))
    commit()
    commit()
    assert baselines(folder) == [first]


def test_without_a_git_history_nothing_is_compared(tmp_path: Path, history):
    folder, _, _ = history
    folder.mkdir()
    assert baselines(folder) == []
    assert baselines(tmp_path / "missing") == []


def test_a_schema_can_be_written_and_read_as_json():
    assert json.loads(schemas.text(ORDERS)) == OLD
    assert field(OLD, "version") == {"const": 1, "type": "integer"}
