"""Labeled requests for comparison: `examples.jsonl`, and their vectors in `examples.npz`.

After a change of the examples, run `python -m include.water.triage.examples` to recompute the vectors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from include.streams.inference.embeddings import Examples
from include.water.topics import Severity
from include.water.triage.proposals import Category

FILE = Path(__file__).with_name("examples.jsonl")


@dataclass(frozen=True)
class Example:
    """A request as a customer could have written it, with its labels."""

    id: str
    category: Category
    severity: Severity
    text: str


@cache
def examples() -> dict[str, Example]:
    """All examples by their id."""
    by_id = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_id[row["id"]] = Example(row["id"], Category(row["category"]), Severity(row["severity"]), row["text"])
    return by_id


@cache
def index() -> Examples:
    """The vectors of the examples."""
    texts = {example.id: example.text for example in examples().values()}
    return Examples(texts, cache_file=FILE.with_suffix(".npz"))


if __name__ == "__main__":
    index().write()
