"""Renders the files of a topic from `templates/`: each a whole file, as for a package of one topic."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from include.streams.contracts import At, FromHeader
from scaffold.choosing import Choice, Field
from scaffold.guessing import COLUMNS, wider
from scaffold.names import Names, snake

TEMPLATES = Path(__file__).parent / "templates"
WIDTH = 116
# Of a new topic, if nobody says otherwise.
PARTITIONS = 4


@dataclass(frozen=True)
class Origin:
    """Where the samples come from, for the docstrings: "30 messages of sample.jsonl"."""

    text: str
    partitions: int = PARTITIONS


def render(names: Names, choice: Choice, origin: Origin, shape: str) -> dict[str, str]:
    """The files of a topic.

    Args:
        names: The names.
        choice: What the contracts hold.
        origin: Where the samples come from.
        shape: "chunked" or "per_message".

    Returns:
        {path: text}. What a second topic shares with the first, such as `topics.py`, is to be merged.
    """
    package = f"include/{names.package}"
    dag_folder = "event_driven" if names.lane == "event" else "batch"
    effect = "effect.py" if names.lane == "event" else "aggregate.py"
    dag = "dag_standard.py" if names.lane == "standard" else f"dag_{shape}.py"
    files = {
        f"{package}/__init__.py": "init.py",
        f"{package}/topics.py": "topics.py",
        f"{package}/tables.py": "tables.py",
        f"{package}/consumers.py": "consumers.py",
        f"{package}/{names.stem}.py": effect,
        f"{package}/assets.py": "assets.py",
        f"{package}/package.py": "package.py",
        f"{package}/{names.simulators}.py": "simulators.py",
        f"dags/{dag_folder}/{names.consumer}.py": dag,
        f"tests/unit/{names.package}/__init__.py": "empty",
        f"tests/unit/{names.package}/test_{names.stem}.py": "test_unit.py",
        f"tests/integration/{names.package}/__init__.py": "empty",
        f"tests/integration/{names.package}/test_{names.stem}.py": f"test_{names.lane}.py",
    }
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(comment=_comment, source=_source, doc=_doc, literal=_literal)
    context = _context(names, choice, origin, shape)
    return {path: environment.get_template(f"{name}.j2").render(context) for path, name in files.items()}


def _context(names: Names, choice: Choice, origin: Origin, shape: str) -> dict[str, Any]:
    contracts = [
        {
            "kind": contract.kind,
            "class_name": contract.class_name,
            "fields": [_field(each, choice.is_own) for each in contract.fields if each not in choice.shared],
        }
        for contract in choice.contracts
    ]
    taken = {contract.class_name for contract in choice.contracts}
    base = next(name for end in ("Message", "AnyMessage") if (name := f"{names.class_prefix}{end}") not in taken)
    id_guess = next(each.guess for each in choice.contracts[0].fields if each.name == choice.id_field)
    id_source = next(each.source for each in choice.contracts[0].fields if each.name == choice.id_field)
    largest = max(len(sample.text.encode()) for sample in choice.samples)
    return {
        "names": names,
        "choice": choice,
        "contracts": contracts,
        "base": base,
        "shared": [_field(each, choice.is_own) for each in choice.shared],
        "is_union": choice.by is not None,
        "id_is_text": id_guess.python == "str",
        "id_source": _source(id_source),
        "origin": origin,
        "shape": shape,
        "max_bytes": wider(largest),
        "largest": largest,
        "version": choice.samples[0].document.get("version") if choice.is_own else None,
        "columns": [] if choice.by else [_column(each) for each in choice.contracts[0].fields],
        "package_constant": names.package.upper(),
        "waiting": f"{names.whole}_waiting",
        "partitions": origin.partitions,
        **_of_another_type(choice.by),
    }


def _of_another_type(by: At | FromHeader | None) -> dict[str, str]:
    """The code of the value and the headers of a message that no contract takes."""
    kind = "another-type"
    if not isinstance(by, At):
        return {"another_value": 'b"{}"', "another_headers": repr([(by.name, kind.encode())] if by else [])}
    document: Any = kind
    for name in reversed(by.names):
        document = {name: document}
    return {"another_value": repr(json.dumps(document).encode()), "another_headers": "[]"}


def _field(each: Field, is_own: bool) -> dict[str, Any]:
    marks = [] if is_own or each.has_own_name else [_source(each.source)]
    if each.guess.bounds:
        bounds = ", ".join(f"{name}={value}" for name, value in sorted(each.guess.bounds.items()))
        marks.append(f"Field({bounds})")
    annotation = f"Annotated[{', '.join([each.guess.name, *marks])}]" if marks else each.guess.name
    present, of = each.seen
    seen = f"{each.guess.note}, in" if each.guess.note else "in"
    note = "" if each.guess.is_known else f"guess: {seen} {present} of {of} samples"
    return {
        "name": each.name,
        "annotation": annotation if each.is_required else f"{annotation} | None = None",
        "note": note,
    }


def _column(each: Field) -> dict[str, Any]:
    kind = COLUMNS[each.guess.python]
    return {"name": each.name, "kind": kind, "rest": ", nullable=False" if each.is_required else ""}


def _source(source: At | FromHeader) -> str:
    """The code of a source."""
    held: Any = source.path if isinstance(source, At) else source.name
    return f"{type(source).__name__}({held!r})"


def _literal(text: str) -> str:
    """A text as code: a file's name may hold quotes."""
    return json.dumps(text, ensure_ascii=False)


def _comment(text: str, indent: int = 0) -> str:
    lines = textwrap.wrap(text, WIDTH - indent - 2, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"{' ' * indent}# {line}" for line in lines)


def _doc(text: str, indent: int = 0) -> str:
    """A paragraph of a docstring, wrapped."""
    text = " ".join(text.split())
    lines = textwrap.wrap(text, 120 - indent, break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * indent}".join(lines)


def sample_path(names: Names) -> str:
    """The file of the samples that are kept."""
    return f"include/{names.package}/samples/{names.topic}.jsonl"


def revision_path(names: Names, number: int) -> str:
    """The file of a revision."""
    return f"include/{names.package}/migrations/versions/{snake(names.package)}_{number:04}.py"
