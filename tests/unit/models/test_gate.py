"""The decisions of the gate, and their reasons."""

from __future__ import annotations

import pytest

from include.streams.models.gate import Gate, Scores

GATE = Gate(margin=0.05, max_group_loss=0.2, limits={"false_alarms": 4.0})
CHAMPION = Scores(0.6, "w", {"a": 0.7, "b": 0.5})
BASELINE = Scores(0.4, "w", {"a": 0.4, "b": 0.4})
RIVALS = {"the champion": CHAMPION, "the baseline": BASELINE}


def candidate(score: float = 0.7, groups: dict | None = None, false_alarms: float = 1.0, window: str = "w") -> Scores:
    return Scores(score, window, {"a": 0.7, "b": 0.7} if groups is None else groups, {"false_alarms": false_alarms})


def test_a_candidate_that_meets_every_condition_passes_with_all_reasons():
    verdict = GATE.judge(candidate(), RIVALS, "the champion")
    assert verdict.passed
    assert verdict.reasons == (
        "beats the champion: 0.700 against 0.600, a difference of +0.100; at least +0.050 is required",
        "beats the baseline: 0.700 against 0.400, a difference of +0.300; at least +0.050 is required",
        "no group is worse than with the champion by more than 0.200",
        "false_alarms is 1; at most 4 is allowed",
    )


def test_a_candidate_better_by_less_than_the_margin_is_blocked():
    verdict = GATE.judge(candidate(0.649), RIVALS, "the champion")
    assert not verdict.passed
    assert "does not beat the champion: 0.649 against 0.600" in verdict.reasons[0]


def test_a_candidate_better_by_exactly_the_margin_passes():
    assert GATE.judge(candidate(0.65), RIVALS, "the champion").passed


def test_a_candidate_that_does_not_beat_the_baseline_is_blocked():
    rivals = {**RIVALS, "the baseline": Scores(0.68, "w")}
    verdict = GATE.judge(candidate(0.7), rivals, "the champion")
    assert not verdict.passed
    assert "does not beat the baseline" in verdict.reasons[1]


def test_a_candidate_with_one_worse_group_is_blocked():
    verdict = GATE.judge(candidate(0.9, {"a": 0.45, "b": 1.0}), RIVALS, "the champion")
    assert not verdict.passed
    assert "group a is worse than with the champion: 0.450 against 0.700" in " ".join(verdict.reasons)


def test_a_candidate_without_a_score_for_a_group_is_blocked():
    assert not GATE.judge(candidate(0.9, {"a": 0.9}), RIVALS, "the champion").passed


def test_groups_are_compared_only_with_the_model_in_use():
    rivals = {**RIVALS, "withdrawn": Scores(0.5, "w", {"a": 1.0, "b": 1.0})}
    assert GATE.judge(candidate(), rivals, "the champion").passed


def test_a_candidate_above_a_limit_is_blocked():
    verdict = GATE.judge(candidate(false_alarms=4.5), RIVALS, "the champion")
    assert not verdict.passed
    assert verdict.reasons[-1] == "false_alarms is 4.5; at most 4 is allowed"


def test_a_candidate_without_a_limited_measure_is_blocked():
    assert not GATE.judge(Scores(0.9, "w", {"a": 1, "b": 1}), RIVALS, "the champion").passed


def test_scores_on_different_data_are_not_compared():
    with pytest.raises(ValueError, match="the baseline, the champion: scored on other data"):
        GATE.judge(candidate(window="another"), dict(sorted(RIVALS.items())), "the champion")
    with pytest.raises(ValueError, match="in use and not among the rivals"):
        GATE.judge(candidate(), RIVALS, "nobody")
