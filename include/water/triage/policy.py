"""What triage may do, and what needs a person's approval: code decides, whatever an engine or a customer says.

There are two questions about a proposal. May it be done at all for this request (`allowed`)? And how much harm could it
do (`risk_of`)? Low risk is executed at once; high risk waits for a person's approval until APPROVAL_DEADLINE has
passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

from include.water.flows.definition import TIME_ZONE
from include.water.sites import DISTRICTS, SITES
from include.water.triage.proposals import Action, Target, TargetKind, TriageDecision

# A later approval would act on a situation that has changed; a person gets the request instead.
APPROVAL_DEADLINE = timedelta(hours=1)
# An approval in time may still be executed this long after the deadline, if services were unavailable.
EXECUTION_GRACE = timedelta(hours=1)

# Local hours in which crews sleep.
NIGHT_BEGINS_HOUR, NIGHT_ENDS_HOUR = 22, 6

_customer, _district, _site = TargetKind.customer, TargetKind.district, TargetKind.site
# The possible targets of each action. An action that is missing here has none.
TARGETS: Mapping[Action, frozenset[TargetKind]] = MappingProxyType(
    {
        Action.send_information: frozenset({_customer}),
        Action.open_ticket: frozenset({_customer, _district, _site}),
        Action.schedule_inspection: frozenset({_customer, _district, _site}),
        Action.dispatch_crew: frozenset({_customer, _district, _site}),
        # A customer's own stop tap belongs to the customer.
        Action.close_valve: frozenset({_district, _site}),
        Action.advise_not_to_drink: frozenset({_customer, _district}),
        Action.hand_to_person: frozenset({_customer, _district, _site}),
    }
)
# Harmless at any hour; dispatch_crew is low risk by day. An action that is added later counts as risky until it is
# named here.
LOW_RISK = frozenset({Action.send_information, Action.open_ticket, Action.schedule_inspection, Action.hand_to_person})


class Risk(StrEnum):
    """The harm that a proposal could do to people if it were wrong."""

    low = "low"
    # Nothing happens until a person has approved it.
    high = "high"


class Asking(Protocol):
    """The customer and district of a request: a ServiceRequest, or a decision's row."""

    @property
    def customer_id(self) -> str: ...

    @property
    def district_id(self) -> str | None: ...


def risk_of(action: Action, target: Target, at: datetime) -> Risk:
    """The risk of an action at a moment; high for everything that is not known to be low.

    Args:
        action: The action.
        target: What it is done to.
        at: The moment, with a time zone.
    """
    if target.kind not in TARGETS.get(action, ()):
        return Risk.high
    if action in LOW_RISK or (action == Action.dispatch_crew and not is_night(at)):
        return Risk.low
    return Risk.high


def is_night(at: datetime) -> bool:
    """Whether crews sleep at this moment (with a time zone)."""
    hour = at.astimezone(TIME_ZONE).hour
    return hour >= NIGHT_BEGINS_HOUR or hour < NIGHT_ENDS_HOUR


def allowed(decision: TriageDecision, request: Asking) -> str | None:
    """None if the decision is allowed for the request, with or without approval; else why not, in fixed words."""
    return why_not(decision.action, decision.target, request)


def why_not(action: Action, target: Target, request: Asking) -> str | None:
    """Why an action is not allowed for the request; None if it is.

    The target must be the request's own customer, its district, or a site of its district, whatever an engine proposes.

    Args:
        action: The action.
        target: What it is done to.
        request: The request, or the row of its decision.
    """
    if target.kind not in TARGETS.get(action, ()):
        return f"{action} cannot be done to a {target.kind}"
    if target.kind == TargetKind.customer:
        return None if target.id == request.customer_id else "the target is another customer than the one who asks"
    # A message can claim any district; only districts of the network are valid targets.
    if request.district_id not in DISTRICTS:
        return "the request lies in no known district"
    if target.kind == TargetKind.district:
        return None if target.id == request.district_id else "the target is another district than the request's"
    site = SITES.get(target.id)
    if site is None or site.district_id != request.district_id:
        return "the target is no site of the request's district"
    return None
