"""The schemas of foreign contracts describe the picked part of a payload; wider contracts are compatible."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
from pydantic import Field

from include.streams.contracts import At, ContractUnion, ForeignContract, FromHeader, Registry, schemas
from include.streams.contracts.__main__ import check
from include.streams.contracts.compatibility import Break, Rule, compare
from include.streams.contracts.types import Line
from tests import webhooks
from tests.unit.contracts.orders import ORDERS

Schema = dict[str, Any]
PUSHES = webhooks.topic(webhooks.Push)
EVENTS = webhooks.topic()
OLD = schemas.schema(PUSHES)


def test_the_schema_accepts_valid_payloads_and_no_invalid_ones():
    validator = jsonschema.Draft202012Validator(OLD)
    jsonschema.Draft202012Validator.check_schema(OLD)
    (webhook,) = webhooks.webhooks(1)
    assert validator.is_valid(webhook.document)
    for path, content in (
        (("ref",), 5),
        (("repository", "full_name"), None),
        (("repository", "license"), "MIT"),
        (("sender",), None),
        (("head_commit",), []),
    ):
        document = copy.deepcopy(webhook.document)
        *parents, last = path
        parent = document
        for name in parents:
            parent = parent[name]
        parent[last] = content
        assert not validator.is_valid(document), path
    assert validator.is_valid({**webhook.document, "head_commit": None, "more": 1})


def test_headers_and_the_types_of_a_union_are_described():
    assert OLD["x-headers"]["properties"]["X-Hub-Delivery"]["x-field"] == "delivery"
    assert OLD["x-headers"]["required"] == ["X-Hub-Delivery"]
    union = schemas.schema(EVENTS)
    assert (union["title"], union["x-chosen-by"]) == ("code.webhooks", "header X-Hub-Event")
    assert list(union["x-types"]) == ["issues", "pull_request", "push"]
    assert union["x-types"]["push"]["properties"] == OLD["properties"]
    assert "$ref" not in json.dumps(union)
    jsonschema.Draft202012Validator.check_schema(union)


class Loose(ForeignContract):
    name: Annotated[str, At("a.b")]
    header: Annotated[str, FromHeader("H")]
    more: Annotated[dict[str, Any], At("c")]

    @property
    def event_id(self) -> str:
        return self.name


def test_only_picked_fields_need_bounds():
    assert schemas.unbounded(OLD) == schemas.unbounded(schemas.schema(EVENTS)) == []
    assert schemas.unbounded(schemas.schema(webhooks.topic(Loose))) == [
        "a.b: a string needs max_length",
        "c: an object needs fixed fields",
        "header H: a string needs max_length",
    ]
    union = webhooks.topic(ContractUnion(by=At("type"), contracts={"loose": Loose}))
    assert schemas.unbounded(schemas.schema(union))[0] == "loose: a.b: a string needs max_length"


def test_the_schemas_of_foreign_topics_are_written_and_checked(tmp_path: Path):
    registry = Registry(EVENTS, ORDERS)
    assert schemas.write(registry, tmp_path) == ["wrote code.webhooks.v1.json", "wrote orders.v1.json"]
    assert check(registry, tmp_path) == []
    second = webhooks.topic(ContractUnion(by=At("type"), contracts={"push": webhooks.Push}, version=2))
    assert schemas.file_name(second) == "code.webhooks.v2.json"


class Wider(webhooks.Push):
    contract_name = "Push"
    branch: Annotated[Line, At("repository.default_branch"), Field(max_length=40)] | None = None
    title: Annotated[Line, At("head_commit.message"), Field(max_length=9_000)] | None = None
    event: Annotated[Line, FromHeader("X-Hub-Event"), Field(max_length=40)] | None = None


def test_more_optional_picked_fields_are_compatible():
    changes = compare(OLD, schemas.schema(webhooks.topic(Wider)))
    assert {(change.rule, change.path) for change in changes} == {
        (Rule.optional_field_added, "repository.default_branch"),
        (Rule.optional_field_added, "head_commit.message"),
        (Rule.optional_field_added, "headers.X-Hub-Event"),
    }
    assert not any(change.breaking for change in changes)


def ref(document: Schema) -> Schema:
    return document["properties"]["ref"]


def headers(document: Schema) -> Schema:
    return document["x-headers"]["properties"]


@pytest.mark.parametrize(
    ("edit", "rule", "path", "is_breaking"),
    [
        (lambda new: ref(new).update(maxLength=300), Rule.bound_widened, "ref", False),
        (lambda new: ref(new).update(maxLength=20), Rule.bound_narrowed, "ref", True),
        (lambda new: ref(new).update({"x-field": "branch"}), Rule.constraint_changed, "ref", True),
        (lambda new: new["required"].append("head_commit"), Rule.field_made_required, "head_commit", True),
        (lambda new: new["properties"].pop("deleted"), Rule.field_removed, "deleted", True),
        (lambda new: headers(new).pop("X-Hub-Delivery"), Rule.field_removed, "headers.X-Hub-Delivery", True),
        (lambda new: new.update({"x-kafka-key": "ref"}), Rule.key_changed, "", True),
        (lambda new: new.update({"x-foreign": False}), Rule.constraint_changed, "", True),
    ],
)  # fmt: skip
def test_only_a_change_that_refuses_valid_messages_is_breaking(
    edit: Callable[[Schema], object], rule: Rule, path: str, is_breaking: bool
):
    new = copy.deepcopy(OLD)
    edit(new)
    (change,) = compare(OLD, new)
    assert (change.rule, change.path, change.breaking) == (rule, path, is_breaking)


def union(**contracts: type[ForeignContract]) -> Schema:
    return schemas.schema(webhooks.topic(ContractUnion(by=FromHeader("X-Hub-Event"), contracts=contracts)))


def test_a_union_may_get_more_types_but_not_lose_any():
    small, large = union(push=webhooks.Push), union(push=Wider, issues=webhooks.Issue)
    changes = compare(small, large)
    assert {change.rule for change in changes} == {Rule.type_added, Rule.optional_field_added}
    assert not any(change.breaking for change in changes)
    assert [(c.rule, c.path, c.breaking) for c in compare(large, union(push=Wider))] == [
        (Rule.type_removed, "issues", True)
    ]
    assert compare(union(push=webhooks.Push), union(push=webhooks.Issue))[0].rule is Rule.name_changed
    assert [(c.rule, c.breaking) for c in compare(OLD, small)] == [(Rule.union_changed, True)]


def test_the_remedy_of_a_breaking_change_is_a_higher_version():
    new = copy.deepcopy(OLD)
    ref(new).update(maxLength=20)
    (change,) = compare(OLD, new)
    assert "raise the version (`contract_version` of the class, `version` of a union)" in str(Break("f", "c", change))
