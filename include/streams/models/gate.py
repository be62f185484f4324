"""The gate: decides from plain numbers whether a candidate may replace the model in use, with reasons as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scores:
    """The result of one contender on held-out data.

    Attributes:
        score: Higher is better.
        window: The data; scores on different data cannot be compared.
        groups: {name: score} for each part of the data that is large enough.
        measures: {name: number} of other figures, which the gate may limit.
    """

    score: float
    window: str
    groups: Mapping[str, float] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """The decision of the gate, and a reason for each condition, met or not."""

    passed: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Gate:
    """The conditions for a candidate.

    Attributes:
        margin: The least difference by which its score must exceed the score of every rival.
        max_group_loss: The largest difference by which its score in a group may be below that of the model in use.
        limits: {measure: largest allowed value}.
    """

    margin: float
    max_group_loss: float
    limits: Mapping[str, float] = field(default_factory=dict)

    def judge(self, candidate: Scores, rivals: Mapping[str, Scores], in_use: str) -> Verdict:
        """Compare a candidate with its rivals.

        Args:
            candidate: The candidate's result.
            rivals: {name: result of a rival}, on the same data.
            in_use: The name of the rival that the candidate would replace.

        Raises:
            ValueError: A rival was scored on other data, or `in_use` is not a rival.
        """
        if in_use not in rivals:
            raise ValueError(f"{in_use!r} is in use and not among the rivals {sorted(rivals)}")
        if other := sorted(name for name, rival in rivals.items() if rival.window != candidate.window):
            raise ValueError(f"{', '.join(other)}: scored on other data than the candidate ({candidate.window})")
        findings = [
            *(self._beats(candidate, name, rival) for name, rival in rivals.items()),
            *self._groups(candidate, in_use, rivals[in_use]),
            *self._limits(candidate),
        ]
        return Verdict(all(is_met for is_met, _ in findings), tuple(reason for _, reason in findings))

    def _beats(self, candidate: Scores, name: str, rival: Scores) -> tuple[bool, str]:
        ahead = candidate.score - rival.score
        # Rounded, so that a difference equal to the margin does not fail because of the last bit.
        is_met = round(ahead, 9) >= self.margin
        return is_met, (
            f"{'beats' if is_met else 'does not beat'} {name}: {candidate.score:.3f} against {rival.score:.3f}, "
            f"a difference of {ahead:+.3f}; at least {self.margin:+.3f} is required"
        )

    def _groups(self, candidate: Scores, name: str, rival: Scores) -> list[tuple[bool, str]]:
        losses = {group: score - candidate.groups.get(group, float("-inf")) for group, score in rival.groups.items()}
        worse = {group: loss for group, loss in losses.items() if round(loss, 9) > self.max_group_loss}
        if not worse:
            return [(True, f"no group is worse than with {name} by more than {self.max_group_loss:.3f}")]
        return [
            (
                False,
                f"group {group} is worse than with {name}: {candidate.groups.get(group, float('nan')):.3f} against "
                f"{rival.groups[group]:.3f}; at most {self.max_group_loss:.3f} less is allowed",
            )
            for group in sorted(worse)
        ]

    def _limits(self, candidate: Scores) -> list[tuple[bool, str]]:
        findings = []
        for name, most in self.limits.items():
            value = candidate.measures.get(name, float("nan"))
            findings.append((value <= most, f"{name} is {value:.3g}; at most {most:.3g} is allowed"))
        return findings
