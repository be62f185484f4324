"""Where models are kept, and which one is in use.

`champion.json` alone says what is in use. It is replaced as a whole and only if nobody else has replaced it since it
was read, so of two trainers at once one wins and the other is told; killed at any line, a reader sees the old champion
or the new one, with its file already there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from include.lake.buckets import ABSENT, Bucket, GenerationChanged
from include.models import files

log = logging.getLogger(__name__)

ROOT = "models"
JSON = "application/json"
# Part of an object's path, so nothing else may be in it.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class ModelError(Exception):
    """A model that is not there, or is not what its card says."""


class ChampionChanged(Exception):
    """Somebody else has made another champion since it was read."""


@dataclass(frozen=True)
class Card:
    """What a version is: how it came about, what it is made of, how it did.

    sha256: of model.skops; None when the file was not kept, because the gate was not passed. data: what it was trained
    and judged on: its fingerprint, snapshots of tables, offsets. verdict: `passed`, and `reasons` in words.
    """

    name: str
    version: str
    created_at: str
    run_id: str
    sha256: str | None
    metrics: Mapping[str, Any]
    parameters: Mapping[str, Any]
    data: Mapping[str, Any]
    contract: str
    libraries: Mapping[str, str]
    verdict: Mapping[str, Any]


@dataclass(frozen=True)
class Reign:
    """A version, or None for no model, from when on and why it was in use."""

    version: str | None
    sha256: str | None
    since: str
    # "training" or "rollback"
    by: str
    reason: str
    run_id: str | None = None


@dataclass(frozen=True)
class Champions:
    """The content of champion.json: the reigns, oldest first, and what rollbacks have withdrawn since the last training
    that made a champion. `generation` is the object's, for replacing it."""

    reigns: tuple[Reign, ...] = ()
    withdrawn: tuple[str, ...] = ()
    generation: int = field(default=ABSENT, compare=False)

    @property
    def current(self) -> Reign | None:
        """The reign of a version; None when no model is in use."""
        return self.reigns[-1] if self.reigns and self.reigns[-1].version else None

    @property
    def version(self) -> str | None:
        return self.current.version if self.current else None

    def before(self) -> str | None:
        """The last version that was in use before the current one and was not withdrawn."""
        passed_over = {self.version, *self.withdrawn}
        found = (reign.version for reign in reversed(self.reigns) if reign.version not in passed_over)
        return next((version for version in found if version), None)


class ModelStore:
    """The models of one name in a bucket."""

    def __init__(self, name: str, bucket: Bucket) -> None:
        self.name = checked(name)
        self._bucket = bucket

    def champions(self) -> Champions:
        found = self._read("champion.json")
        if found is None:
            return Champions()
        document, generation = found
        return Champions(
            tuple(Reign(**reign) for reign in document["history"]), tuple(document["withdrawn"]), generation
        )

    def card(self, version: str) -> Card:
        """Raises ModelError when there is no such version."""
        found = self._read(f"{checked(version)}/card.json")
        if found is None:
            raise ModelError(f"no version {version} of model {self.name}; `python -m include.models list {self.name}`")
        return Card(**found[0])

    def cards(self) -> list[Card]:
        """Every version, oldest first."""
        entries = self._bucket.list(f"{ROOT}/{self.name}/")
        versions = [entry.path.split("/")[-2] for entry in entries if entry.path.endswith("/card.json")]
        return sorted((self.card(version) for version in versions), key=lambda card: (card.created_at, card.version))

    def load(self, version: str, allowed: Collection[str]) -> tuple[Any, Card]:
        """The model and its card.

        Raises ModelError when the file is not the one of the card, UntrustedModel when it holds more than the allowed
        types.
        """
        card = self.card(version)
        return files.from_bytes(self._bytes(card), allowed), card

    def load_champion(self, allowed: Collection[str]) -> tuple[Any, Card] | None:
        """The model in use and its card; None when no model is. Raises as `load` does, and ModelError when the card is
        not the one that became champion."""
        reign = self.champions().current
        if reign is None or reign.version is None:
            return None
        model, card = self.load(reign.version, allowed)
        if card.sha256 != reign.sha256:
            raise ModelError(f"model {self.name} {reign.version}: card and file are not those that became champion")
        return model, card

    def keep(self, data: bytes, card: Card) -> None:
        """Keep a model's file and then its card, which names the file's digest."""
        self._bucket.write(self._path(f"{checked(card.version)}/model.skops"), data)
        self.keep_card(replace(card, sha256=digest(data)))

    def keep_card(self, card: Card) -> None:
        self._write(f"{checked(card.version)}/card.json", asdict(card))

    def promote(self, version: str, champions: Champions, *, reason: str, run_id: str) -> Champions:
        """Make a version the champion instead of the one in `champions`. Raises ChampionChanged when that is not the
        one in use any more: the version was compared with another."""
        card = self.card(version)
        self._bytes(card)
        reign = Reign(version, card.sha256, _now(), "training", reason, run_id)
        return self._replace(Champions((*champions.reigns, reign), (), champions.generation), card)

    def roll_back(self, version: str | None, champions: Champions, *, reason: str) -> Champions:
        """Put an earlier champion in use again, or no model at all, and withdraw the one that is.

        A candidate of a later training has to beat what was withdrawn, too: trained on much the same data it is much
        the same model, and would undo the rollback. Raises ModelError when `version` never was a champion or its file
        is not what it was, ChampionChanged.
        """
        if champions.version == version:
            raise ModelError(f"{version or 'no model'} is in use already")
        card = None
        if version is not None:
            if version not in {reign.version for reign in champions.reigns}:
                raise ModelError(f"{version} never was the champion of {self.name}: nothing says that it is any good")
            card = self.card(version)
            self._bytes(card)
        withdrawn = [name for name in (*champions.withdrawn, champions.version) if name and name != version]
        reign = Reign(version, card.sha256 if card else None, _now(), "rollback", reason)
        return self._replace(
            Champions((*champions.reigns, reign), tuple(dict.fromkeys(withdrawn)), champions.generation), card
        )

    def last_training(self) -> Mapping[str, Any] | None:
        found = self._read("last_training.json")
        return found[0] if found else None

    def keep_last_training(self, facts: Mapping[str, Any]) -> None:
        self._write("last_training.json", facts)

    def _replace(self, champions: Champions, card: Card | None) -> Champions:
        reign = champions.reigns[-1]
        document = {
            "name": self.name,
            **{name: value for name, value in asdict(reign).items() if name != "run_id"},
            # What pages show of the model in use, so that they read one object.
            "trained_at": card.created_at if card else None,
            "metrics": card.metrics if card else {},
            "data": card.data if card else {},
            "withdrawn": champions.withdrawn,
            "history": [asdict(each) for each in champions.reigns],
        }
        try:
            generation = self._write("champion.json", document, if_generation_match=champions.generation)
        except GenerationChanged as error:
            raise ChampionChanged(f"model {self.name}: somebody else has made another champion meanwhile") from error
        log.info("champion of %s: %s, by %s: %s", self.name, reign.version, reign.by, reign.reason)
        return replace(champions, generation=generation)

    def _bytes(self, card: Card) -> bytes:
        """The file of a card, if it is the one that the card was written for."""
        found = self._bucket.read(self._path(f"{card.version}/model.skops"))
        if found is None or card.sha256 is None:
            raise ModelError(f"model {self.name} {card.version} has no file: it did not pass the gate, or was removed")
        if digest(found[0]) != card.sha256:
            raise ModelError(
                f"model {self.name} {card.version}: the file is not the one of its card (sha256 {digest(found[0])}, "
                f"not {card.sha256}); roll back to another version, and find out who wrote it"
            )
        return found[0]

    def _read(self, path: str) -> tuple[dict[str, Any], int] | None:
        found = self._bucket.read(self._path(path))
        return (json.loads(found[0]), found[1]) if found else None

    def _write(self, path: str, document: Mapping[str, Any], if_generation_match: int | None = None) -> int:
        data = json.dumps(document, indent=2, allow_nan=False).encode()
        return self._bucket.write(self._path(path), data, JSON, if_generation_match=if_generation_match)

    def _path(self, path: str) -> str:
        return f"{ROOT}/{self.name}/{path}"


def names(bucket: Bucket) -> list[str]:
    """Names of all models in the bucket."""
    return sorted({entry.path.split("/")[1] for entry in bucket.list(f"{ROOT}/")})


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def checked(name: str) -> str:
    """The name of a model or version, if it can be part of a path. Raises ModelError."""
    if not _NAME.fullmatch(name):
        raise ModelError(f"{name!r} is no name of a model or version: lower-case letters, digits, '.', '_' and '-'")
    return name


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
