"""The derived JSON Schemas, their files, and the command that writes and checks them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest

from include.streams.contracts import Contract, Registry, Topic, schemas
from include.streams.contracts.__main__ import DEFAULT_REGISTRY, FOLDER, PROJECT, check, load_registry, main
from include.streams.contracts.compatibility import baselines, breaks_since
from tests.unit.contracts.orders import ORDERS, ORDERS_V2, message

REFERENCE = "tests.unit.contracts.test_schemas:REGISTRY"
REGISTRY = Registry(ORDERS, ORDERS_V2)


def test_the_committed_schemas_are_those_of_the_projects_contracts():
    assert schemas.stale(load_registry(DEFAULT_REGISTRY), FOLDER) == [], "run `make contracts` and commit"


def test_every_field_of_the_projects_contracts_has_bounds():
    for topic in load_registry(DEFAULT_REGISTRY):
        assert schemas.unbounded(schemas.schema(topic)) == [], topic.name


def test_the_projects_contracts_are_compatible_with_committed_schemas():
    commits = baselines(FOLDER)
    if not commits:
        pytest.skip("no git history here to compare the contracts with")
    registry = load_registry(DEFAULT_REGISTRY)
    breaks = [str(each) for commit in commits for each in breaks_since(registry, FOLDER, commit)]
    assert breaks == []


def test_the_derived_schema_is_valid_and_agrees_with_the_contract():
    document = schemas.schema(ORDERS)
    jsonschema.Draft202012Validator.check_schema(document)
    validator = jsonschema.Draft202012Validator(document)
    assert validator.is_valid(json.loads(message()))
    for invalid in (message("price"), message(extra=1), message(quantity=0), message(version=2)):
        assert not validator.is_valid(json.loads(invalid))


def test_the_file_name_has_the_topic_and_the_version():
    assert schemas.file_name(ORDERS) == "orders.v1.json"
    assert schemas.file_name(ORDERS_V2) == "orders.v2.json"


def test_write_makes_the_folder_match_the_registry(tmp_path: Path):
    assert schemas.stale(REGISTRY, tmp_path) == ["orders.v1.json: missing", "orders.v2.json: missing"]
    assert schemas.write(REGISTRY, tmp_path) == ["wrote orders.v1.json", "wrote orders.v2.json"]
    assert schemas.stale(REGISTRY, tmp_path) == []
    assert schemas.write(REGISTRY, tmp_path) == []

    (tmp_path / "orders.v1.json").write_text("{}")
    (tmp_path / "old.v1.json").write_text("{}")
    assert schemas.stale(REGISTRY, tmp_path) == [
        "old.v1.json: no topic has this contract",
        "orders.v1.json: differs",
    ]
    assert schemas.write(REGISTRY, tmp_path) == [
        "removed old.v1.json: no topic has this contract any more",
        "rewrote orders.v1.json",
    ]
    assert schemas.stale(REGISTRY, tmp_path) == []


class Loose(Contract):
    version: Literal[1]
    name: str
    count: int
    size: float | None
    tags: list[str]
    more: dict[str, Any]
    anything: Any

    @property
    def event_id(self) -> str:
        return self.name


def test_fields_without_bounds_are_listed_by_name():
    topic = Topic("loose", Loose, key="name", partitions=1, retention=None)
    assert schemas.unbounded(schemas.schema(topic)) == [
        "name: a string needs max_length",
        "count: a number needs a lower bound",
        "count: a number needs an upper bound",
        "size: a number needs a lower bound",
        "size: a number needs an upper bound",
        "tags: an array needs max_length",
        "tags[]: a string needs max_length",
        "more: an object needs fixed fields",
        "anything: any value is allowed",
    ]
    assert schemas.unbounded(schemas.schema(ORDERS)) == schemas.unbounded(schemas.schema(ORDERS_V2)) == []


def test_the_command_checks_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--registry", REFERENCE, "--folder", str(tmp_path)]
    assert main(["check", *arguments]) == 1
    assert "orders.v1.json: missing; run `make contracts`" in capsys.readouterr().out
    assert main(["write", *arguments]) == 0
    assert main(["write", *arguments]) == 0
    assert capsys.readouterr().out.endswith("nothing to do\n")
    assert main(["check", *arguments]) == 0
    assert capsys.readouterr().out == "2 contracts are as committed\n"


@pytest.mark.parametrize(
    "reference", ["nowhere", "no.such.module:X", "tests.unit.contracts.orders:NAME", f"{__name__}:REFERENCE"]
)
def test_a_registry_that_cannot_be_loaded_is_reported_in_one_line(reference: str, capsys: pytest.CaptureFixture[str]):
    assert main(["check", "--registry", reference]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_help_shows_actions_and_options():
    command = [sys.executable, "-m", "include.streams.contracts", "--help"]
    process = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True)
    assert "write|check" in process.stdout
    assert "--registry" in process.stdout


def test_check_lists_fields_without_bounds(tmp_path: Path):
    registry = Registry(Topic("loose", Loose, key="name", partitions=1, retention=None))
    schemas.write(registry, tmp_path)
    assert "loose: name: a string needs max_length" in check(registry, tmp_path)
