"""Training, the champion, the gate and the rollback, on a real object store, with a model of three numbers."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from include.streams.lake import buckets
from include.streams.lake.buckets import Bucket
from include.streams.models import __main__ as command
from include.streams.models import files
from include.streams.models.files import UntrustedModel
from include.streams.models.gate import Gate, Scores
from include.streams.models.repairs import roll_back
from include.streams.models.store import ChampionChanged, ModelError, ModelStore, digest
from include.streams.models.training import Outcome, train
from include.streams.operations.audit import Actor
from include.streams.operations.migrate import upgrade

pytestmark = pytest.mark.integration

ALLOWED = (
    "builtins.bool",
    "builtins.dict",
    "builtins.list",
    "builtins.str",
    "builtins.tuple",
    "numpy.float64",
    "numpy.int32",
    "numpy.int64",
    "numpy.ndarray",
    "sklearn.linear_model._base.LinearRegression",
)
GATE = Gate(margin=0.05, max_group_loss=0.2)


@pytest.fixture
def bucket(object_store, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket in place of the bucket for artifacts."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    remote = buckets.bucket(name)
    remote._remote.client.create_bucket(name)
    monkeypatch.setenv("AIRFLOW_VAR_ARTIFACTS_BUCKET", name)
    return remote


@pytest.fixture
def store(bucket: Bucket) -> ModelStore:
    return ModelStore("pumps", bucket)


@pytest.fixture
def operations(object_store) -> None:
    """The operational database, for the records of rollbacks."""
    upgrade()


@dataclass
class Skill:
    """A training whose model always predicts `skill`, which is also its score."""

    skill: float
    fingerprint: str = field(default_factory=lambda: uuid.uuid4().hex)
    label: str = "2026-11-20"
    contract: str = "pumps v1"
    data: Mapping[str, Any] = field(default_factory=lambda: {"snapshots": {"pumps": 17}})
    window: str = "the last month"
    group_b: float | None = None
    fitted: int = 0
    while_fitting: Any = None

    def fit(self) -> tuple[Any, Mapping[str, Any]]:
        self.fitted += 1
        if self.while_fitting:
            self.while_fitting()
        return LinearRegression().fit(np.zeros((2, 1)), np.full(2, self.skill)), {"seed": 1}

    def score(self, model: Any, parameters: Mapping[str, Any]) -> Scores:
        assert parameters == {"seed": 1}
        found = round(float(model.predict(np.zeros((1, 1)))[0]), 6)
        is_candidate = found == self.skill
        return Scores(found, self.window, {"a": found, "b": self.group_b if self.group_b and is_candidate else found})

    def score_baseline(self) -> Scores:
        return Scores(0.3, self.window, {"a": 0.3, "b": 0.3})


def run(store: ModelStore, skill: float | Skill, run_id: str | None = None, **options) -> Outcome:
    attempt = skill if isinstance(skill, Skill) else Skill(skill)
    return train(store, GATE, attempt, allowed=ALLOWED, run_id=run_id or uuid.uuid4().hex, **options)


def champion_json(store: ModelStore) -> dict[str, Any]:
    """As another program would read it."""
    found = store._bucket.read("models/pumps/champion.json")
    assert found
    return json.loads(found[0])


def test_the_first_model_must_beat_the_baseline(store: ModelStore):
    blocked = run(store, 0.32)
    assert not blocked.promoted
    assert "does not beat the baseline: 0.320 against 0.300" in blocked.reasons[0]
    assert store.load_champion(ALLOWED) is None
    passed = run(store, 0.5)
    assert passed.promoted
    assert store.history().version == passed.version


def test_a_better_candidate_replaces_the_champion_and_has_a_full_card(store: ModelStore):
    first, second = run(store, 0.5), run(store, 0.6, "run-2")
    assert second.promoted
    model, card = store.load_champion(ALLOWED)
    assert model.predict(np.zeros((1, 1)))[0] == pytest.approx(0.6)
    assert card.version == second.version != first.version
    assert card.metrics["score"] == 0.6
    assert card.data["snapshots"] == {"pumps": 17}
    assert (card.contract, card.run_id, card.parameters) == ("pumps v1", "run-2", {"seed": 1})
    assert set(card.libraries) == {"numpy", "scikit-learn", "skops"}
    assert card.verdict["passed"]
    assert card.verdict["reasons"][1].startswith(f"beats the champion {first.version}: 0.600 against 0.500")
    document = champion_json(store)
    assert document["version"] == second.version
    assert [period["version"] for period in document["history"]] == [first.version, second.version]
    assert document["metrics"]["score"] == 0.6


def test_a_worse_candidate_is_blocked_and_only_its_card_is_stored(store: ModelStore, bucket: Bucket):
    champion = run(store, 0.6)
    blocked = run(store, 0.4)
    assert not blocked.promoted
    assert any("does not beat the champion" in reason for reason in blocked.reasons)
    assert store.history().version == champion.version
    kept = {entry.path for entry in bucket.list(f"models/pumps/{blocked.version}/")}
    assert kept == {f"models/pumps/{blocked.version}/card.json"}
    assert store.card(blocked.version).verdict["passed"] is False


def test_a_candidate_that_fails_one_group_is_blocked(store: ModelStore):
    champion = run(store, 0.6)
    blocked = run(store, Skill(0.9, group_b=0.3))
    assert not blocked.promoted
    assert f"group b is worse than with the champion {champion.version}: 0.300 against 0.600" in "; ".join(
        blocked.reasons
    )
    assert store.history().version == champion.version
    assert run(store, Skill(0.9, group_b=0.5)).promoted


def test_unchanged_data_are_not_trained_on_again(store: ModelStore):
    run(store, Skill(0.5, fingerprint="same"))
    again = Skill(0.5, fingerprint="same")
    outcome = run(store, again)
    assert (outcome.version, outcome.promoted, again.fitted) == (None, False, 0)
    assert "unchanged data" in outcome.reasons[0]
    assert run(store, again, force=True).version is not None
    assert again.fitted == 1


def test_of_two_trainings_at_once_exactly_one_makes_a_champion(store: ModelStore):
    together = threading.Barrier(2)
    attempts = [Skill(0.6, while_fitting=together.wait), Skill(0.8, while_fitting=together.wait)]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda attempt: run(ModelStore("pumps", buckets.bucket()), attempt), attempts))
    assert sorted(outcome.promoted for outcome in outcomes) == [False, True]
    won, lost = sorted(outcomes, key=lambda outcome: not outcome.promoted)
    assert store.history().version == won.version
    assert len(store.history().periods) == 1
    assert "another process has replaced the champion" in lost.reasons[-1]
    assert store.load(lost.version, ALLOWED)[1].verdict["passed"]
    # It was compared with a champion that is no longer in use, so it may train again on the same data.
    again = next(attempt for attempt, outcome in zip(attempts, outcomes, strict=True) if not outcome.promoted)
    again.while_fitting = None
    assert run(store, again).version is not None


def test_a_run_killed_after_its_promotion_returns_its_champion_when_retried(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelStore, "save_last_training", killed)
    with pytest.raises(KeyboardInterrupt):
        run(store, Skill(0.5, fingerprint="same"), "the run")
    monkeypatch.undo()
    made = store.history().version
    assert made is not None
    outcome = run(store, Skill(0.5, fingerprint="same"), "the run")
    assert (outcome.version, outcome.promoted) == (made, True)
    assert len(store.history().periods) == 1
    assert "unchanged data" in run(store, Skill(0.5, fingerprint="same"), "the next run").reasons[0]


@pytest.mark.parametrize("step", ["save", "promote"])
def test_a_run_killed_before_its_promotion_trains_again_when_retried(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, step: str
):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelStore, step, killed)
    with pytest.raises(KeyboardInterrupt):
        run(store, Skill(0.5, fingerprint="same"), "the run")
    monkeypatch.undo()
    assert store.history().version is None
    assert run(store, Skill(0.5, fingerprint="same"), "the run").promoted
    assert store.load_champion(ALLOWED) is not None


def test_a_rollback_takes_effect_at_once_and_is_recorded(store: ModelStore):
    first, second = run(store, 0.5), run(store, 0.7)
    store.roll_back(first.version, store.history(), reason="false alarms in the north")
    model, card = store.load_champion(ALLOWED)
    assert card.version == first.version
    assert model.predict(np.zeros((1, 1)))[0] == pytest.approx(0.5)
    document = champion_json(store)
    assert (document["version"], document["by"], document["reason"]) == (
        first.version, "rollback", "false alarms in the north",
    )  # fmt: skip
    assert [period["version"] for period in document["history"]] == [first.version, second.version, first.version]
    assert document["withdrawn"] == [second.version]


def test_a_training_after_a_rollback_must_also_beat_the_withdrawn_version(store: ModelStore):
    first, second = run(store, 0.5), run(store, 0.7)
    store.roll_back(first.version, store.history(), reason="a test")
    sibling = run(store, 0.71)
    assert not sibling.promoted
    assert any(f"does not beat {second.version}, which was withdrawn" in reason for reason in sibling.reasons)
    assert store.history().version == first.version
    better = run(store, 0.8)
    assert better.promoted
    assert store.history().withdrawn == ()


def test_repeated_rollbacks_go_further_back_and_end_without_a_model(store: ModelStore):
    first, second, third = (run(store, skill) for skill in (0.4, 0.5, 0.6))
    assert third.promoted
    in_use = []
    for _ in range(3):
        history = store.history()
        in_use.append(store.roll_back(history.previous(), history, reason="a test").version)
    assert in_use == [second.version, first.version, None]
    assert store.load_champion(ALLOWED) is None
    assert set(store.history().withdrawn) == {first.version, second.version, third.version}
    with pytest.raises(ModelError, match="no model is in use already"):
        store.roll_back(None, store.history(), reason="a test")


def test_a_rollback_during_a_training_wins(store: ModelStore):
    first, second = run(store, 0.5), run(store, 0.6)

    def roll_back() -> None:
        store.roll_back(first.version, store.history(), reason="a test")

    outcome = run(store, Skill(0.9, while_fitting=roll_back))
    assert not outcome.promoted
    assert store.history().version == first.version
    assert store.history().withdrawn == (second.version,)


def test_a_rollback_to_a_version_that_was_never_champion_is_refused(store: ModelStore):
    run(store, 0.5)
    blocked = run(store, 0.4)
    for version in (blocked.version, "2020-01-01-nothing"):
        with pytest.raises(ModelError, match="was never the champion"):
            store.roll_back(version, store.history(), reason="a test")


def test_a_replaced_file_is_not_loaded_and_not_rolled_back_to(store: ModelStore, bucket: Bucket):
    first, second = run(store, 0.5), run(store, 0.6)
    other = files.to_bytes(LinearRegression().fit(np.zeros((2, 1)), np.ones(2)), ALLOWED)
    bucket.write(f"models/pumps/{first.version}/model.skops", other)
    with pytest.raises(ModelError, match="the file does not match its card"):
        store.roll_back(first.version, store.history(), reason="a test")
    assert store.history().version == second.version
    # With a card to match: the champion's digest is also in champion.json.
    bucket.write(f"models/pumps/{second.version}/model.skops", other)
    store.save_card(replace(store.card(str(second.version)), sha256=digest(other)))
    with pytest.raises(ModelError, match="not those that became champion"):
        store.load_champion(ALLOWED)


def test_a_champion_with_types_that_are_not_listed_is_not_loaded(store: ModelStore):
    run(store, 0.5)
    with pytest.raises(UntrustedModel, match="LinearRegression"):
        store.load_champion([name for name in ALLOWED if "Linear" not in name])


def test_a_training_that_cannot_load_the_champion_changes_nothing(store: ModelStore, bucket: Bucket):
    first = run(store, 0.5)
    bucket.delete(f"models/pumps/{first.version}/model.skops")
    with pytest.raises(ModelError, match="has no file"):
        run(store, 0.9)
    store.roll_back(None, store.history(), reason="the file is gone")
    outcome = run(store, 0.9)
    assert outcome.promoted
    assert "not compared with" in outcome.reasons[-1]


def test_two_rollbacks_at_once_do_not_overwrite_each_other(store: ModelStore):
    first, _ = run(store, 0.5), run(store, 0.6)
    seen = store.history()
    store.roll_back(first.version, seen, reason="one")
    with pytest.raises(ChampionChanged):
        store.roll_back(None, seen, reason="the other")


def test_the_retry_of_a_rollback_does_not_roll_back_further(store: ModelStore, bucket: Bucket, operations: None):
    first, second, third = run(store, 0.5), run(store, 0.6), run(store, 0.7)
    params: Any = {"model": store.name, "version": "", "reason": "false alarms", "dry_run": True}
    by = Actor("ann", "roll_back_model", f"manual__{uuid.uuid4()}")
    planned = roll_back(params, by, bucket=bucket)
    assert planned["lines"][-1] == f"would be in use: {second.version}"
    assert store.history().version == third.version
    params["dry_run"] = False
    store.roll_back(second.version, store.history(), reason="false alarms (by ann)", run_id=by.run_id)
    # The task was killed here.
    done = roll_back(params, by, bucket=bucket)
    assert done["lines"][0] == f"in use: {second.version}"
    assert store.history().version == second.version
    again = roll_back(params, replace(by, run_id=f"manual__{uuid.uuid4()}"), bucket=bucket)
    assert again["lines"][0] == f"in use: {first.version}"
    assert store.history().periods[-1].reason == "false alarms (by ann)"


def test_the_commands_list_show_and_roll_back(store: ModelStore, operations: None, capsys: pytest.CaptureFixture[str]):
    first, blocked, second = run(store, 0.5), run(store, 0.2), run(store, 0.6)
    assert command.main(["list"]) == 0
    assert capsys.readouterr().out == f"pumps  {second.version}\n"
    assert command.main(["rollback", "pumps", "--reason", "a look"]) == 0
    out = capsys.readouterr().out
    assert f"in use: {first.version}" in out
    assert f"withdrawn: {second.version}" in out
    assert command.main(["list", "pumps"]) == 0
    states = {line.split()[0]: line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()}
    assert states == {first.version: "champion", blocked.version: "did not pass", second.version: "withdrawn"}
    assert command.main(["show", "pumps", str(first.version)]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["score"] == 0.5
    assert command.main(["show", "pumps"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == first.version
    assert command.main(["rollback", "pumps", "none"]) == 0
    assert "in use: no model" in capsys.readouterr().out
    assert command.main(["rollback", "pumps", "../../secret"]) == 1
    assert "was never the champion" in capsys.readouterr().err
    assert command.main(["show", "../x"]) == 1
    assert "is no name of a model" in capsys.readouterr().err
