"""The store of models, and the model in use.

Only `champion.json` decides which model is in use. It is replaced as a whole, and only if no other process has replaced
it since it was read. So of two concurrent trainers one succeeds, and the other gets ChampionChanged. If a trainer is
killed at any line, a reader sees the old champion or the new champion, whose file then exists.
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

from include.streams.lake.buckets import ABSENT, Bucket, GenerationChanged
from include.streams.models import files

log = logging.getLogger(__name__)

ROOT = "models"
JSON = "application/json"
# A name is part of an object's path, so it may contain no other characters.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class ModelError(Exception):
    """A model does not exist, or its file does not match its card."""


class ChampionChanged(Exception):
    """Another process has replaced the champion since it was read."""


@dataclass(frozen=True)
class Card:
    """The description of a version: its origin, its content and its results.

    Attributes:
        name: The model's name.
        version: The version's name.
        created_at: When it was trained, as ISO 8601 text in UTC.
        run_id: The Dag run that trained it.
        sha256: The SHA-256 of model.skops in hex; None when the file was not stored, because it did not pass the gate.
        metrics: Its results on held-out data.
        parameters: The parameters from the training.
        data: The data for training and comparison: fingerprint, snapshots of tables, offsets.
        contract: The contract of the data.
        libraries: {library: version}.
        verdict: `passed`, and `reasons` as texts.
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
class ChampionPeriod:
    """A period in which a version was in use.

    Attributes:
        version: The version; None for a period without a model.
        sha256: The SHA-256 of its file in hex.
        since: The beginning of the period, as ISO 8601 text in UTC.
        by: "training" or "rollback".
        reason: Why it was put in use.
        run_id: The Dag run of the training or of the rollback; None for a rollback in a shell.
    """

    version: str | None
    sha256: str | None
    since: str
    by: str
    reason: str
    run_id: str | None = None


@dataclass(frozen=True)
class ModelHistory:
    """The content of champion.json.

    Attributes:
        periods: The periods, oldest first.
        withdrawn: The versions that rollbacks have withdrawn since the last training that made a champion.
        generation: The object's generation, needed to replace it.
    """

    periods: tuple[ChampionPeriod, ...] = ()
    withdrawn: tuple[str, ...] = ()
    generation: int = field(default=ABSENT, compare=False)

    @property
    def current(self) -> ChampionPeriod | None:
        """The present period; None when no model is in use."""
        return self.periods[-1] if self.periods and self.periods[-1].version else None

    @property
    def version(self) -> str | None:
        return self.current.version if self.current else None

    def previous(self) -> str | None:
        """The last version that was in use before the present version and was not withdrawn; None without one."""
        excluded = {None, self.version, *self.withdrawn}
        return next((period.version for period in reversed(self.periods) if period.version not in excluded), None)


class ModelStore:
    """The models of one name in a bucket."""

    def __init__(self, name: str, bucket: Bucket) -> None:
        self.name = checked(name)
        self._bucket = bucket

    def history(self) -> ModelHistory:
        """Read champion.json; an empty history when no version has been in use."""
        stored = self._read("champion.json")
        if stored is None:
            return ModelHistory()
        document, generation = stored
        return ModelHistory(
            tuple(ChampionPeriod(**period) for period in document["history"]), tuple(document["withdrawn"]), generation
        )

    def card(self, version: str) -> Card:
        """Read the card of a version; raises ModelError when there is no such version."""
        stored = self._read(f"{checked(version)}/card.json")
        if stored is None:
            raise ModelError(
                f"no version {version} of model {self.name}; `python -m include.streams.models list {self.name}`"
            )
        return Card(**stored[0])

    def cards(self) -> list[Card]:
        """The cards of all versions, oldest first."""
        entries = self._bucket.list(f"{ROOT}/{self.name}/")
        versions = [entry.path.split("/")[-2] for entry in entries if entry.path.endswith("/card.json")]
        return sorted((self.card(version) for version in versions), key=lambda card: (card.created_at, card.version))

    def load(self, version: str, allowed: Collection[str]) -> tuple[Any, Card]:
        """Load a model with its card.

        Args:
            version: The version.
            allowed: The allowed types, as "module.class".

        Raises:
            ModelError: The version or its file does not exist, or the file does not match its card.
            UntrustedModel: The file contains types that are not allowed.
        """
        card = self.card(version)
        return files.from_bytes(self._bytes(card), allowed), card

    def load_champion(self, allowed: Collection[str]) -> tuple[Any, Card] | None:
        """Load the model in use with its card; None when no model is in use.

        Args:
            allowed: The allowed types, as "module.class".

        Raises:
            ModelError: As for `load`, or the card and the file are not those that became champion.
            UntrustedModel: The file contains types that are not allowed.
        """
        period = self.history().current
        if period is None or period.version is None:
            return None
        model, card = self.load(period.version, allowed)
        if card.sha256 != period.sha256:
            raise ModelError(f"model {self.name} {period.version}: card and file are not those that became champion")
        return model, card

    def save(self, data: bytes, card: Card) -> None:
        """Write a model's file, and then its card with the file's digest.

        Args:
            data: The content of the file, from `files.to_bytes`.
            card: The card; its `sha256` is replaced.
        """
        self._bucket.write(self._path(f"{checked(card.version)}/model.skops"), data)
        self.save_card(replace(card, sha256=digest(data)))

    def save_card(self, card: Card) -> None:
        """Write a card alone, for a version that did not pass the gate."""
        self._write(f"{checked(card.version)}/card.json", asdict(card))

    def promote(self, version: str, history: ModelHistory, *, reason: str, run_id: str) -> ModelHistory:
        """Make a version the champion.

        Args:
            version: A stored version that passed the gate.
            history: The history as it was when the version was compared with the champion.
            reason: Why, for people.
            run_id: The Dag run of the training.

        Raises:
            ChampionChanged: Another champion is in use now, so the version was compared with the wrong one.
            ModelError: The version's file does not exist or does not match its card.
        """
        card = self.card(version)
        self._bytes(card)
        period = ChampionPeriod(version, card.sha256, _now(), "training", reason, run_id)
        return self._replace(ModelHistory((*history.periods, period), (), history.generation), card)

    def roll_back(
        self, version: str | None, history: ModelHistory, *, reason: str, run_id: str | None = None
    ) -> ModelHistory:
        """Put an earlier champion in use again, or no model, and withdraw the present champion.

        A candidate of a later training must also beat the withdrawn version. Otherwise the candidate, which was trained
        on nearly the same data and is nearly the same model, would undo the rollback.

        Args:
            version: The earlier champion; None for no model.
            history: The history from which the caller has chosen the version.
            reason: Why, for people.
            run_id: The Dag run that rolls back.

        Raises:
            ModelError: The version is in use already, never was a champion, or its file does not match its card.
            ChampionChanged: Another champion is in use now.
        """
        if history.version == version:
            raise ModelError(f"{version or 'no model'} is in use already")
        card = None
        if version is not None:
            if version not in {period.version for period in history.periods}:
                raise ModelError(
                    f"{version} was never the champion of {self.name}; `list {self.name}` shows the earlier champions"
                )
            card = self.card(version)
            self._bytes(card)
        withdrawn = [name for name in (*history.withdrawn, history.version) if name and name != version]
        period = ChampionPeriod(version, card.sha256 if card else None, _now(), "rollback", reason, run_id)
        return self._replace(
            ModelHistory((*history.periods, period), tuple(dict.fromkeys(withdrawn)), history.generation), card
        )

    def last_training(self) -> Mapping[str, Any] | None:
        """The facts of `save_last_training`; None when no training has ended."""
        stored = self._read("last_training.json")
        return stored[0] if stored else None

    def save_last_training(self, facts: Mapping[str, Any]) -> None:
        """Record the data of the last training: `fingerprint`, `label`, `version` and `run_id`."""
        self._write("last_training.json", facts)

    def _replace(self, history: ModelHistory, card: Card | None) -> ModelHistory:
        newest = history.periods[-1]
        document = {
            "name": self.name,
            **{name: value for name, value in asdict(newest).items() if name != "run_id"},
            # Facts about the model in use for pages, so that a page needs to read only this object.
            "trained_at": card.created_at if card else None,
            "metrics": card.metrics if card else {},
            "data": card.data if card else {},
            "withdrawn": history.withdrawn,
            "history": [asdict(period) for period in history.periods],
        }
        try:
            generation = self._write("champion.json", document, if_generation_match=history.generation)
        except GenerationChanged as error:
            raise ChampionChanged(f"model {self.name}: another process has replaced the champion") from error
        log.info("champion of %s: %s, by %s: %s", self.name, newest.version, newest.by, newest.reason)
        return replace(history, generation=generation)

    def _bytes(self, card: Card) -> bytes:
        """The file of a card; raises ModelError when it does not exist or does not match the card."""
        stored = self._bucket.read(self._path(f"{card.version}/model.skops"))
        if stored is None or card.sha256 is None:
            raise ModelError(f"model {self.name} {card.version} has no file: it did not pass the gate, or was removed")
        if digest(stored[0]) != card.sha256:
            raise ModelError(
                f"model {self.name} {card.version}: the file does not match its card (sha256 {digest(stored[0])}, "
                f"the card says {card.sha256}); roll back to another version, and find out who wrote the file"
            )
        return stored[0]

    def _read(self, path: str) -> tuple[dict[str, Any], int] | None:
        stored = self._bucket.read(self._path(path))
        return (json.loads(stored[0]), stored[1]) if stored else None

    def _write(self, path: str, document: Mapping[str, Any], if_generation_match: int | None = None) -> int:
        data = json.dumps(document, indent=2, allow_nan=False).encode()
        return self._bucket.write(self._path(path), data, JSON, if_generation_match=if_generation_match)

    def _path(self, path: str) -> str:
        return f"{ROOT}/{self.name}/{path}"


def names(bucket: Bucket) -> list[str]:
    """The names of all models in the bucket, sorted."""
    return sorted({entry.path.split("/")[1] for entry in bucket.list(f"{ROOT}/")})


def digest(data: bytes) -> str:
    """The SHA-256 of the data in hex."""
    return hashlib.sha256(data).hexdigest()


def checked(name: str) -> str:
    """Return the name of a model or version if it may be part of a path; raise ModelError otherwise."""
    if not _NAME.fullmatch(name):
        raise ModelError(f"{name!r} is no name of a model or version: lower-case letters, digits, '.', '_' and '-'")
    return name


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
