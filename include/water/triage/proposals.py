"""The result of triage for a request: a decision from closed sets, and how the engine made it.

This module imports only pydantic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from include.streams.contracts.types import Line
from include.water.topics import Action, Severity, TargetKind

# Changes whenever the meaning of a category, an action or a risk changes; every decision records it.
POLICY_VERSION = "1"


class Category(StrEnum):
    """What a request is about."""

    burst_pipe = "burst_pipe"
    no_water = "no_water"
    water_quality = "water_quality"
    low_pressure = "low_pressure"
    billing = "billing"
    meter = "meter"
    other = "other"


class Target(BaseModel):
    """What the action is done to: a customer, a district or a site, by its id in the request or the network."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    kind: TargetKind
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$", max_length=40)]


class TriageDecision(BaseModel):
    """What an engine proposes. Severity never decides risk: code does, from action and target."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    category: Category
    severity: Severity
    summary: Annotated[Line, Field(min_length=1, max_length=300)]
    action: Action
    target: Target
    # Ids that tools returned for this request; any other id is refused.
    evidence: Annotated[tuple[Annotated[Line, Field(max_length=160)], ...], Field(max_length=20)] = ()


@dataclass(frozen=True)
class Proposal:
    """A decision and how the engine made it; all of it is stored in the decision's row.

    Attributes:
        decision: The proposed decision.
        engine: "llm" or "offline".
        model_asked: The model that was requested, if any.
        model_answered: The model that answered, if any.
        prompt_version: The version of the prompt, if a model was asked.
        fallback_reason: Why the offline engine answered instead of the model, else None.
        tool_calls: Dicts {"name", "arguments", "ids"}.
        usage: {"requests", "input_tokens", "output_tokens"}.
        explanation: The offline engine's reasons: the rule or the nearest examples with their similarity.
    """

    decision: TriageDecision
    engine: str
    model_asked: str | None = None
    model_answered: str | None = None
    prompt_version: str | None = None
    fallback_reason: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    usage: dict[str, int] = field(default_factory=dict)
    explanation: dict[str, Any] = field(default_factory=dict)
