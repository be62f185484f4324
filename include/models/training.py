"""One training: a candidate from new data, judged against what is in use, and made champion if it passes the gate."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from typing import Any, Protocol

from include.models import files
from include.models.files import UntrustedModel
from include.models.gate import Gate, Scores, Verdict
from include.models.store import Card, ChampionChanged, Champions, ModelError, ModelStore, digest

log = logging.getLogger(__name__)

BASELINE = "the baseline"
# A file of another version of these may load, and predict something else.
LIBRARIES = ("numpy", "scikit-learn", "skops")


class Attempt(Protocol):
    """What is trained, on which data; all of it from one state of the data and without chance."""

    # The beginning of the version's name, such as the day of the newest data.
    label: str
    # A digest of the data and of everything else that makes the model what it is.
    fingerprint: str
    contract: str
    # For the card: snapshots, offsets, counts.
    data: Mapping[str, Any]

    def fit(self) -> tuple[Any, Mapping[str, Any]]:
        """The candidate, from the part of the data before the held-out window, and its parameters."""
        ...

    def score(self, model: Any, parameters: Mapping[str, Any]) -> Scores:
        """A model on the held-out window: the candidate, the champion, or one that was withdrawn."""
        ...

    def score_baseline(self) -> Scores:
        """What would be used without a model, on the held-out window."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a training came to. version: of the candidate; None when nothing was trained."""

    version: str | None
    promoted: bool
    reasons: tuple[str, ...]


def train(
    store: ModelStore, gate: Gate, attempt: Attempt, *, allowed: Collection[str], run_id: str, force: bool = False
) -> Outcome:
    """Train, judge, keep, and make the candidate champion if it passes.

    Nothing is done when the data are those of the last training, unless `force`. A run that was killed and starts again
    trains again; if it had made a champion already, it says so and leaves it.
    """
    champions = store.champions()
    reign = champions.current
    if reign is not None and reign.by == "training" and reign.run_id == run_id:
        _remember(store, attempt, run_id, str(reign.version))
        return Outcome(reign.version, True, (reign.reason,))
    last = store.last_training()
    if last is not None and last["fingerprint"] == attempt.fingerprint and not force:
        return Outcome(None, False, (f"unchanged data: version {last['version']} was trained on the same",))

    model, parameters = attempt.fit()
    data = files.to_bytes(model, allowed)
    candidate = attempt.score(model, parameters)
    verdict = _judge(store, gate, attempt, champions, candidate, allowed)
    card = Card(
        name=store.name,
        # Of the file's own content: two trainings can never write to one place.
        version=f"{attempt.label}-{digest(data)[:10]}",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=run_id,
        sha256=None,
        metrics={"score": candidate.score, "groups": dict(candidate.groups), **candidate.measures},
        parameters=parameters,
        data={**attempt.data, "fingerprint": attempt.fingerprint, "held_out": candidate.window},
        contract=attempt.contract,
        libraries={name: installed(name) for name in LIBRARIES},
        verdict={"passed": verdict.passed, "reasons": verdict.reasons},
    )
    outcome = _settle(store, champions, card, data, verdict)
    if outcome.promoted or not verdict.passed:
        # Last: a run that is killed before this trains again.
        _remember(store, attempt, run_id, card.version)
    log.info(
        "model %s %s: %s: %s",
        store.name,
        card.version,
        "new champion" if outcome.promoted else "not the champion",
        "; ".join(outcome.reasons),
    )
    return outcome


def _judge(
    store: ModelStore,
    gate: Gate,
    attempt: Attempt,
    champions: Champions,
    candidate: Scores,
    allowed: Collection[str],
) -> Verdict:
    rivals = {BASELINE: attempt.score_baseline()}
    in_use, remarks = BASELINE, []
    if champions.version is not None:
        in_use = f"the champion {champions.version}"
        # Raises when it cannot be loaded: a person then decides what is used instead.
        model, card = store.load(champions.version, allowed)
        rivals[in_use] = attempt.score(model, card.parameters)
    for version in champions.withdrawn:
        try:
            model, card = store.load(version, allowed)
        except (ModelError, UntrustedModel) as error:
            remarks.append(f"not compared with {version}, which was withdrawn: {error}")
        else:
            rivals[f"{version}, which was withdrawn,"] = attempt.score(model, card.parameters)
    verdict = gate.judge(candidate, rivals, in_use)
    return Verdict(verdict.passed, (*verdict.reasons, *remarks))


def _settle(store: ModelStore, champions: Champions, card: Card, data: bytes, verdict: Verdict) -> Outcome:
    if not verdict.passed:
        store.keep_card(card)
        return Outcome(card.version, False, verdict.reasons)
    store.keep(data, card)
    try:
        store.promote(card.version, champions, reason="; ".join(verdict.reasons), run_id=card.run_id)
    except ChampionChanged as error:
        # It was compared with one that is not in use any more; the next training, on the same data too, compares with
        # the new one.
        return Outcome(card.version, False, (*verdict.reasons, str(error)))
    return Outcome(card.version, True, verdict.reasons)


def _remember(store: ModelStore, attempt: Attempt, run_id: str, version: str) -> None:
    store.keep_last_training(
        {"fingerprint": attempt.fingerprint, "label": attempt.label, "version": version, "run_id": run_id}
    )
