"""One training: a candidate from new data becomes champion if it passes the gate against the model in use."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from typing import Any, Protocol

from include.streams.models import files
from include.streams.models.files import UntrustedModel
from include.streams.models.gate import Gate, Scores, Verdict
from include.streams.models.store import Card, ChampionChanged, ModelError, ModelHistory, ModelStore, digest

log = logging.getLogger(__name__)

BASELINE = "the baseline"
# Recorded in the card: with another version of these libraries, a file may load but predict other values.
LIBRARIES = ("numpy", "scikit-learn", "skops")


class TrainingRun(Protocol):
    """The data and the code of one training. All data must come from one state, and the code must be deterministic."""

    # The prefix of the version's name, such as the day of the newest data.
    label: str
    # A digest of the data and of everything else that affects the model.
    fingerprint: str
    contract: str
    # Facts for the card: snapshots, offsets, counts.
    data: Mapping[str, Any]

    def fit(self) -> tuple[Any, Mapping[str, Any]]:
        """Train the candidate on the data before the held-out window; returns it with its parameters."""
        ...

    def score(self, model: Any, parameters: Mapping[str, Any]) -> Scores:
        """Score a model on the held-out window: the candidate, the champion, or a withdrawn version."""
        ...

    def score_baseline(self) -> Scores:
        """Score the method that is used without a model, on the held-out window."""
        ...


@dataclass(frozen=True)
class Outcome:
    """The outcome of a training.

    Attributes:
        version: The candidate's version; None when nothing was trained.
        promoted: Whether the candidate became champion.
        reasons: The reasons of the gate, or why nothing was trained.
    """

    version: str | None
    promoted: bool
    reasons: tuple[str, ...]


def train(
    store: ModelStore, gate: Gate, training: TrainingRun, *, allowed: Collection[str], run_id: str, force: bool = False
) -> Outcome:
    """Train a candidate, compare it, store it, and make it champion if it passes.

    Nothing is trained when the data are those of the last training, unless `force` is set. A run that was killed trains
    again when it is retried. If it had already promoted its candidate, the retry returns that champion.

    Args:
        store: The store of the model.
        gate: The conditions for the candidate.
        training: The data and the code of this training.
        allowed: The allowed types in the file, as "module.class".
        run_id: The Dag run.
        force: Train although the data are unchanged.

    Raises:
        ModelError: The champion's file does not exist or does not match its card: a person must decide.
        UntrustedModel: The candidate or the champion contains types that are not allowed.
    """
    history = store.history()
    period = history.current
    if period is not None and period.by == "training" and period.run_id == run_id:
        _save_last_training(store, training, run_id, str(period.version))
        return Outcome(period.version, True, (period.reason,))
    last = store.last_training()
    if last is not None and last["fingerprint"] == training.fingerprint and not force:
        return Outcome(None, False, (f"unchanged data: version {last['version']} was trained on them",))

    model, parameters = training.fit()
    data = files.to_bytes(model, allowed)
    candidate = training.score(model, parameters)
    verdict = _judge(store, gate, training, history, candidate, allowed)
    card = Card(
        name=store.name,
        # With a digest of the file's content, so that two trainings never write different files to one path.
        version=f"{training.label}-{digest(data)[:10]}",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=run_id,
        sha256=None,
        metrics={"score": candidate.score, "groups": dict(candidate.groups), **candidate.measures},
        parameters=parameters,
        data={**training.data, "fingerprint": training.fingerprint, "held_out": candidate.window},
        contract=training.contract,
        libraries={name: installed(name) for name in LIBRARIES},
        verdict={"passed": verdict.passed, "reasons": verdict.reasons},
    )
    outcome = _save_and_promote(store, history, card, data, verdict)
    if outcome.promoted or not verdict.passed:
        # The last step, so that the retry of a run that is killed before it trains again.
        _save_last_training(store, training, run_id, card.version)
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
    training: TrainingRun,
    history: ModelHistory,
    candidate: Scores,
    allowed: Collection[str],
) -> Verdict:
    rivals = {BASELINE: training.score_baseline()}
    in_use, remarks = BASELINE, []
    if history.version is not None:
        in_use = f"the champion {history.version}"
        # Raises if the champion cannot be loaded: a person must then choose the model to use instead.
        model, card = store.load(history.version, allowed)
        rivals[in_use] = training.score(model, card.parameters)
    for version in history.withdrawn:
        try:
            model, card = store.load(version, allowed)
        except (ModelError, UntrustedModel) as error:
            remarks.append(f"not compared with {version}, which was withdrawn: {error}")
        else:
            rivals[f"{version}, which was withdrawn,"] = training.score(model, card.parameters)
    verdict = gate.judge(candidate, rivals, in_use)
    return Verdict(verdict.passed, (*verdict.reasons, *remarks))


def _save_and_promote(store: ModelStore, history: ModelHistory, card: Card, data: bytes, verdict: Verdict) -> Outcome:
    if not verdict.passed:
        store.save_card(card)
        return Outcome(card.version, False, verdict.reasons)
    store.save(data, card)
    try:
        store.promote(card.version, history, reason="; ".join(verdict.reasons), run_id=card.run_id)
    except ChampionChanged as error:
        # The candidate was compared with a champion that is no longer in use. The training is not recorded as the last
        # one, so the next training compares with the new champion even if the data are the same.
        return Outcome(card.version, False, (*verdict.reasons, str(error)))
    return Outcome(card.version, True, verdict.reasons)


def _save_last_training(store: ModelStore, training: TrainingRun, run_id: str, version: str) -> None:
    store.save_last_training(
        {"fingerprint": training.fingerprint, "label": training.label, "version": version, "run_id": run_id}
    )
