"""What `make topic` renders is tidy code, and its contracts take the samples, in each lane and shape."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from include.streams import LandingConsumer
from include.streams.contracts import schemas
from scaffold.choosing import Choice, Wishes, choose
from scaffold.names import Names
from scaffold.rendering import Origin, render
from scaffold.trial import Trial
from tests.unit.scaffold.samples import ROOT, TYPED, names, of_webhooks, orders
from tests.unit.scaffold.samples import of as sampled

KINDS = ("union", "single", "own")
LANES = [("event", "chunked"), ("event", "per_message"), ("standard", "chunked")]


def choice_of(kind: str, of: Names, folder: Path) -> Choice:
    if kind == "own":
        return choose(orders(), of, Wishes())
    samples = of_webhooks(folder)
    return choose(samples, of, TYPED if kind == "union" else Wishes(id=TYPED.id, key="repository.id"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"rendered_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # Pydantic looks there for the names in annotations.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("lane", "shape"), LANES)
def test_the_files_are_tidy_and_the_contracts_take_the_samples(kind: str, lane: str, shape: str, folder: Path):
    of = names(lane=lane)
    choice = choice_of(kind, of, folder)
    files = render(of, choice, Origin("30 messages of sample.jsonl"), shape)
    trial = Trial(ROOT, folder)
    for path, text in files.items():
        trial.write(path, text)
    # It raises Refused if a rule of ruff is broken.
    trial.tidy(list(files))
    (dag,) = [folder / path for path in files if path.startswith("dags/")]
    assert len(dag.read_text().splitlines()) <= 110
    assert ast.get_docstring(ast.parse(dag.read_text()))
    topics = load(folder / "include/code/topics.py")
    (topic,) = topics.TOPICS
    assert topic is topics.WEBHOOKS
    assert schemas.unbounded(schemas.schema(topic)) == []
    events = [topic.parse(s.text.encode(), [(n, v.encode()) for n, v in s.headers.items()]) for s in choice.samples]
    assert len({(type(event), event.event_id) for event in events}) == len(events)
    if lane == "standard":
        # Raises ValueError if the contracts cannot share a table.
        LandingConsumer(name="count", topic=topic)


def test_a_long_name_is_shortened(folder: Path):
    of = names("com.example.platform.region.europe.customers.customer-address-has-changed-its-country.v12")
    assert of.stem == "customer_address_has_changed_its_country_v12"
    trial = Trial(ROOT, folder)
    for shape in ("chunked", "per_message"):
        files = render(of, choose(orders(), of, Wishes()), Origin("a sample"), shape)
        for path, text in files.items():
            trial.write(path, text)
        trial.tidy(list(files))


def test_guesses_are_marked_and_what_a_schema_says_is_not(folder: Path):
    of = names("orders.placed")
    choice = choose(orders(), of, Wishes(), {"amount_cents": {"minimum": 0, "maximum": 5_000}})
    text = render(of, choice, Origin("a schema"), "chunked")["include/orders/topics.py"]
    assert "# guess: 9 characters, in 12 of 12 samples\n    order_id: Identifier" in text
    above = text[: text.index("    amount_cents: Annotated[int, Field(ge=0, le=5000)]")].splitlines()[-1]
    assert "guess" not in above


def test_the_name_of_a_sample_file_is_a_text_and_no_code(folder: Path):
    of, name = names(), 'a" + str(1 / 0) + "\\ {{ names }}.jsonl'
    files = render(of, choice_of("own", of, folder), Origin(f"3 messages of {name}"), "chunked")
    path = folder / "topics.py"
    path.write_text(files["include/code/topics.py"])
    (topic,) = load(path).TOPICS
    assert topic.description == f"Learned by make topic from 3 messages of {name}."


def test_a_field_that_all_types_have_alike_is_written_once(folder: Path):
    of = names()
    text = render(of, choice_of("union", of, folder), Origin("30 messages"), "chunked")["include/code/topics.py"]
    assert text.count("At('repository.full_name')") == 1
    assert text.count("def event_id(") == 1
    assert "class WebhooksPush(WebhooksMessage):" in text
    assert len(re.findall(r"^class ", text, re.MULTILINE)) == 5


def test_the_base_class_has_a_name_of_its_own(folder: Path):
    of = names()
    samples = sampled(*({"id": f"e{n}", "type": ("message", "b")[n % 2]} for n in range(4)))
    files = render(of, choose(samples, of, Wishes(kind="type")), Origin("4 messages"), "chunked")
    path = folder / "topics.py"
    path.write_text(files["include/code/topics.py"])
    (topic,) = load(path).TOPICS
    assert topic.parse(b'{"id": "e9", "type": "message"}').contract_name == "WebhooksMessage"
