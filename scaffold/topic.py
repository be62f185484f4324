"""`make topic`: writes all that a topic needs, or nothing."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

from scaffold import editing
from scaffold.choosing import Choice, Wishes, choose
from scaffold.errors import Refused
from scaffold.names import Names, names_of
from scaffold.observing import value_of
from scaffold.rendering import Origin, render, sample_path
from scaffold.samples import Sample, from_file, from_topic, kept
from scaffold.schemas import from_schema
from scaffold.trial import Trial, trial

USAGE = """\
make topic derives a contract from messages, and writes contract, consumer, effect, table, Dag and tests of a topic:

  make topic NAME=orders.placed FROM=orders.jsonl
  make topic NAME=github.webhooks FROM=sample.jsonl TYPE=header:X-GitHub-Event ID=header:X-GitHub-Delivery LANE=standard

NAME=     the topic's name in Kafka
PACKAGE=  its package in include/; default: the first part of the name
FROM=     the messages: a file as for make send, of values or of {"headers": {...}, "key": "...", "value": {...}}
SCHEMA=   instead of FROM=: a JSON Schema
TOPIC=    instead of NAME= and FROM=: a topic on the running broker
LANE=     event (default: an effect for each message) or standard (batches, through an Iceberg table)
SHAPE=    only for LANE=event: chunked (default) or per_message (a Dag run for each message)
ID=       the field with the event's id, or header:NAME
KEY=      the field with the Kafka key
TYPE=     the field with the type of a message, or header:NAME, if the topic has several types
FIELDS=   the fields to pick, such as "repository.full_name sender.login"

Everything is written and checked in a copy first. If something is refused, the project is as before. If the command is
killed while it writes, the next one takes its files back. docs/your-own-topic.md explains the options."""
LANES, SHAPES = ("event", "standard"), ("chunked", "per_message")
# With fewer samples, guesses are weak.
FEW = 10


@dataclass(frozen=True)
class Order:
    """What the command line asks for; the names are those of the variables of `make topic`."""

    name: str | None = None
    from_: Path | None = None
    schema: Path | None = None
    topic: str | None = None
    lane: str = "event"
    shape: str | None = None
    package: str | None = None
    wishes: Wishes = field(default_factory=Wishes)


@dataclass(frozen=True)
class _Input:
    samples: list[Sample]
    origin: Origin
    schemas: dict
    notes: list[str]


def make(order: Order, root: Path) -> list[str]:
    """Write a topic.

    Args:
        order: What is asked for.
        root: The project's folder.

    Returns:
        What to print: what was written, what to look at, what to do next.

    Raises:
        Refused: Nothing was written; the text says why.
    """
    name = _checked(order)
    names = names_of(name, order.package, order.lane, root)
    _refuse_what_exists(names, root)
    given = _input(order)
    choice = choose(given.samples, names, order.wishes, given.schemas)
    files = render(names, choice, given.origin, order.shape or "chunked")
    with trial(root) as copy:
        _write(copy, names, choice, files)
        copy.run(
            "writing the revision and the lists", "python", "-m", "scaffold.derived", names.package, "--topic", name
        )
        copy.tidy(copy.changed())
        copy.run("the contract's own test", "python", "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider",
                 f"tests/unit/{names.package}/test_{names.stem}.py")  # fmt: skip
        written = copy.changed()
        copy.apply()
    return _report(names, choice, [*given.notes, *choice.notes], written, given)


def _checked(order: Order) -> str:
    """The topic's name."""
    sources = [
        text for text, value in (("FROM", order.from_), ("SCHEMA", order.schema), ("TOPIC", order.topic)) if value
    ]
    if len(sources) != 1:
        given = " and ".join(sources) or "none of them"
        raise Refused(f"give one of FROM=, SCHEMA= and TOPIC= ({given} was given)\n\n{USAGE}")
    name = order.name or order.topic
    if not name:
        raise Refused(f"give the topic's name with NAME=\n\n{USAGE}")
    if order.topic and order.name and order.name != order.topic:
        raise Refused(f"NAME={order.name} and TOPIC={order.topic} differ: omit NAME=; it is the topic that is read")
    if not re.fullmatch(r"[a-zA-Z0-9._-]{1,200}", name) or not re.search(r"[a-zA-Z]", name):
        raise Refused(f"NAME={name}: a topic's name has letters, digits, '.', '_' and '-'; give another NAME")
    if order.lane not in LANES:
        raise Refused(f"LANE={order.lane}: there is no such lane; give LANE=event or LANE=standard")
    if order.shape is not None and order.shape not in SHAPES:
        raise Refused(f"SHAPE={order.shape}: there is no such shape; give SHAPE=chunked or SHAPE=per_message")
    if order.shape is not None and order.lane == "standard":
        raise Refused(f"SHAPE={order.shape}: only the event lane has shapes; omit SHAPE=, or use LANE=event")
    return name


def _refuse_what_exists(names: Names, root: Path) -> None:
    try:
        from include.project import PROJECT
        from tests.unit.operations.columns import declared

        tables = declared().tables
    except Exception as error:
        raise Refused(
            f"include/project.py cannot be loaded ({type(error).__name__}: {error}); repair it first"
        ) from error
    if names.topic in PROJECT.topics:
        raise Refused(f"the topic {names.topic} is declared already; change its package, or give another NAME")
    known = {consumer.name for consumer in (*PROJECT.consumers, *PROJECT.landing_consumers)}
    if names.consumer in known:
        raise Refused(f"there is a consumer {names.consumer} already; give another PACKAGE or NAME")
    if names.table in tables:
        raise Refused(f"there is a table {names.table} already; give another PACKAGE or NAME")
    for path in (
        f"include/{names.package}/{names.stem}.py",
        sample_path(names),
        f"tests/unit/{names.package}/test_{names.stem}.py",
    ):
        if (root / path).exists():
            raise Refused(f"{path} exists already; give another NAME, or remove it (git status shows new files)")
    folder = root / "include" / names.package
    if folder.exists() and not (folder / "package.py").exists():
        raise Refused(
            f"include/{names.package}/ exists and is no package of topics (no package.py); give another PACKAGE"
        )


def _shown(file: Path) -> str:
    """The name of a file, without characters that no source file holds."""
    return "".join(character if character.isprintable() else "?" for character in file.name[-60:])


def _input(order: Order) -> _Input:
    if order.schema:
        samples, fields = from_schema(order.schema)
        return _Input(samples, Origin(f"the JSON Schema {_shown(order.schema)}"), fields, [])
    if order.topic:
        samples, others, partitions = from_topic(order.topic)
        origin = Origin(f"{len(samples)} messages of the topic", partitions)
    else:
        assert order.from_
        samples, others = from_file(order.from_)
        origin = Origin(f"{len(samples)} messages of {_shown(order.from_)}")
    notes = [f"{others} messages whose value is no JSON object were left out"] if others else []
    if len(samples) < FEW:
        notes.append(f"only {len(samples)} messages were read: more messages give better guesses")
    return _Input(samples, origin, {}, notes)


def _write(copy: Trial, names: Names, choice: Choice, files: dict[str, str]) -> None:
    constant = names.package.upper()
    if existing := copy.read(f"include/{names.package}/package.py"):
        constant = _package_constant(existing, names.package)
    for path, text in files.items():
        text = re.sub(rf"^{names.package.upper()} = Package", f"{constant} = Package", text, flags=re.MULTILINE)
        existing = copy.read(path)
        if existing is None:
            copy.write(path, text)
        elif text and not path.endswith("__init__.py"):
            if path.endswith("/topics.py") and "TOPICS = Registry(" not in existing:
                raise Refused(f"{path} has no `TOPICS = Registry(...)`; name the package's registry so, or add by hand")
            copy.write(path, editing.merged(existing, text, path))
    binding = copy.read("include/project.py") or ""
    if f"include.{names.package}.package" not in binding:
        binding = editing.merged(
            binding, f"from include.{names.package}.package import {constant}\n", "include/project.py"
        )
        copy.write("include/project.py", editing.with_argument(binding, "PROJECT", constant))
    lines = [sample.line for sample in _kept(choice)]
    copy.write(sample_path(names), "\n".join(lines) + "\n")


def _package_constant(source: str, package: str) -> str:
    for part in editing.parts_of(source):
        value = part.node.value if isinstance(part.node, ast.Assign) else None
        if (
            isinstance(value, ast.Call)
            and isinstance(value.func, ast.Name)
            and value.func.id == "Package"
            and part.name
        ):
            return part.name
    raise Refused(f"include/{package}/package.py has no `NAME = Package(...)`; give another PACKAGE")


def _kept(choice: Choice) -> list[Sample]:
    """The samples that are kept: each id once, some of each type."""
    by_id: dict[str, Sample] = {}
    source = next(each.source for each in choice.contracts[0].fields if each.name == choice.id_field)
    for sample in choice.samples:
        by_id.setdefault(str(value_of(sample, source)), sample)
    return kept(list(by_id.values()), lambda sample: value_of(sample, choice.by) if choice.by else None)


def _report(names: Names, choice: Choice, notes: list[str], written: list[str], given: _Input) -> list[str]:
    package, folder = f"include/{names.package}", "event_driven" if names.lane == "event" else "batch"
    kinds = ", ".join(str(contract.kind) for contract in choice.contracts if contract.kind)
    form = "a union of contracts" if choice.by else "a plain contract" if choice.is_own else "a foreign contract"
    look = {
        f"{package}/topics.py": f"{form}{f' ({kinds})' if kinds else ''}: check each comment `guess:`",
        f"{package}/{names.stem}.py": "the effect: change it to what your messages need",
        f"{package}/tables.py": f"the table; after you have added a table: make revision PACKAGE={names.package}",
        f"dags/{folder}/{names.consumer}.py": "the Dag: its docstring is shown in Airflow",
    }
    if not given.schemas:
        look[sample_path(names)] = "samples of your messages, for tests and make demo: check that they may be committed"
    width = max(map(len, look))
    if names.simulators != "simulators":
        notes = [*notes, f"the package has simulators of its own, so make demo does not run {names.simulators}.py"]
    return [
        f"wrote {len(written)} files for the topic {names.topic}, learned from {given.origin.text}:",
        *(f"  {path}" for path in written),
        *(["", "chosen by default:", *(f"  {note}" for note in notes)] if notes else []),
        "",
        "look at:",
        *(f"  {path:{width}}  {text}" for path, text in look.items()),
        "",
        "next:",
        "  make lint test-fast",
        f"  make test ARGS=tests/integration/{names.package}",
        "  make demo    sends messages like the samples, and shows the outcome of each",
        f"  make up, then make send TOPIC={names.topic} FILE={sample_path(names)}, then make look",
    ]
