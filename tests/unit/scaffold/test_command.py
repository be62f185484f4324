"""The command line of `make topic`: what it refuses, and with which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from include.streams import At, FromHeader
from scaffold.__main__ import main
from scaffold.errors import Refused
from scaffold.names import camel, field_name, snake
from tests.unit.scaffold.samples import names


def ask(capsys, *arguments: str) -> tuple[int, str]:
    code = main(["topic", *arguments])
    return code, capsys.readouterr().err


def test_without_arguments_it_shows_two_examples(capsys):
    code, text = ask(capsys)
    assert code == 2
    assert text.count("make topic NAME=") == 2


@pytest.fixture
def sample(tmp_path: Path) -> str:
    path = tmp_path / "sample.jsonl"
    path.write_text("".join(json.dumps({"id": number, "text": "a"}) + "\n" for number in range(3)))
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--NAME", "a.b"], "give one of FROM=, SCHEMA= and TOPIC= (none of them was given)"),
        (["--FROM", "x", "--TOPIC", "a"], "give one of FROM=, SCHEMA= and TOPIC= (FROM and TOPIC was given)"),
        (["--FROM", "x"], "give the topic's name with NAME="),
        (["--NAME", "a b", "--FROM", "x"], "NAME=a b: a topic's name has letters, digits"),
        (["--NAME", "a.b", "--FROM", "x", "--LANE", "slow"], "LANE=slow: there is no such lane; give LANE=event or"),
        (
            ["--NAME", "a.b", "--FROM", "x", "--SHAPE", "round"],
            "SHAPE=round: there is no such shape; give SHAPE=",
        ),
        (
            ["--NAME", "a.b", "--FROM", "x", "--LANE", "standard", "--SHAPE", "chunked"],
            "SHAPE=chunked: only the event lane",
        ),
        (["--NAME", "a.b", "--TOPIC", "b"], "NAME=a.b and TOPIC=b differ"),
        (["--NAME", "a.b", "--FROM", "/nowhere/x"], "FROM=/nowhere/x: No such file or directory"),
        (["--NAME", "a.b", "--SCHEMA", "x.avsc"], "SCHEMA=x.avsc: Avro is not supported"),
        (
            ["--NAME", "a.b", "--FROM", "x", "--PACKAGE", "streams"],
            "package streams: a folder of the library has this name",
        ),
        (
            ["--NAME", "a.b", "--FROM", "x", "--PACKAGE", "kafka"],
            "package kafka: a folder of the library has this name",
        ),
        (["--NAME", "a.b", "--FROM", "x", "--PACKAGE", "a-b"], "PACKAGE=a-b: a package's name has lower-case letters"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(capsys, arguments: list[str], said: str):
    code, text = ask(capsys, *arguments)
    assert code == 2
    assert text.startswith(said), text


def test_a_file_without_an_object_is_refused(capsys, tmp_path: Path):
    path = tmp_path / "sample.jsonl"
    path.write_text("1\n[2]\nnot JSON\n")
    code, text = ask(capsys, "--NAME", "a.b", "--FROM", str(path))
    assert code == 2
    assert "no document of it is a JSON object; write a line for each message" in text


@pytest.mark.parametrize(
    ("topic", "package", "expected"),
    [
        ("github.push", None, ("github", "push", "github_push", "record_github_push")),
        ("orders", None, ("orders", "orders", "orders", "record_orders")),
        (
            "orders.placed.v2",
            "shop",
            ("shop", "orders_placed_v2", "shop_orders_placed_v2", "record_shop_orders_placed_v2"),
        ),
        ("shop-topics", None, ("shop", "topics_topic", "shop_topics_topic", "record_shop_topics_topic")),
        ("2026.class", "shop", ("shop", "x_2026_class", "shop_x_2026_class", "record_shop_x_2026_class")),
    ],
)
def test_names_follow_from_the_topics_name(topic: str, package: str | None, expected: tuple):
    found = names(topic, package)
    assert (found.package, found.stem, found.whole, found.consumer) == expected


def test_a_package_with_the_name_of_a_keyword_is_refused():
    with pytest.raises(Refused, match="PACKAGE=class"):
        names("class.a")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (At("repository.fullName"), "repository_full_name"),
        (At("a.deeply.nested.path.of.many.members.with.long.names"), "long_names"),
        (FromHeader("X-GitHub-Delivery"), "github_delivery"),
        (At("version"), "version_value"),
        (At("model_name"), "model_name_value"),
        (At("日本"), "x"),
    ],
)
def test_a_field_is_named_after_its_place(source, expected):
    assert field_name(source, set()) == expected
    assert field_name(source, {expected}) != expected


def test_words_become_names():
    assert [snake("PullRequest-2"), snake("2x"), camel("pull_request")] == ["pull_request_2", "x_2x", "PullRequest"]
