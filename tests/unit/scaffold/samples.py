"""Samples for the tests of `make topic`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scaffold.choosing import Choice, Wishes, choose
from scaffold.names import Names, names_of
from scaffold.samples import Sample, from_file
from tests import webhooks

ROOT = Path(__file__).resolve().parents[3]
TYPED = Wishes(kind="header:X-Hub-Event", id="header:X-Hub-Delivery")


def of(*documents: dict[str, Any], key: str | None = None, **headers: str) -> list[Sample]:
    """Samples of documents, all with the same headers."""
    return [Sample(json.dumps(document), document, headers, key) for document in documents]


def of_webhooks(folder: Path, count: int = 30) -> list[Sample]:
    webhooks.write_sample(folder / "hooks.jsonl", count)
    samples, _ = from_file(folder / "hooks.jsonl")
    return samples


def orders(count: int = 12) -> list[Sample]:
    """A shop's own messages: flat, with a version."""
    return of(
        *(
            {
                "version": 1,
                "order_id": f"SO-{number:06}",
                "placed_at": f"2026-03-{number + 1:02}T10:00:00Z",
                "amount_cents": 100 * number + 1,
                "discount": 0.5 * number,
                "is_gift": number % 2 == 0,
                "note": None if number % 3 else "ring twice",
            }
            for number in range(count)
        )
    )


def names(topic: str = "code.webhooks", package: str | None = None, lane: str = "event") -> Names:
    return names_of(topic, package, lane, ROOT)


def chosen(samples: list[Sample], wishes: Wishes | None = None, **kwargs: Any) -> Choice:
    return choose(samples, names(), wishes or Wishes(), **kwargs)
