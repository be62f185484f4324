"""From a customer's request to a proposal: by a model if the connection `llm` is defined, else by rules and examples.

`propose` never fails because of a model: if the model gives no usable answer, the offline engine answers, and the
proposal contains the reason. `propose` changes nothing, so a task that was killed in it can simply run again.

Importing this module imports only pydantic; heavy modules are imported when they are used.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from include.streams.inference.embeddings import Match
from include.streams.inference.manipulation import signs_of_manipulation
from include.streams.inference.redaction import clean, redact
from include.water.topics import Action, ServiceRequest, Severity
from include.water.triage.examples import Example, examples, index
from include.water.triage.policy import allowed
from include.water.triage.prompt import MAX_TEXT_CHARS, PROMPT_VERSION, SYSTEM, user_prompt
from include.water.triage.proposals import Category, Proposal, Target, TargetKind, TriageDecision
from include.water.triage.rules import (
    ALLOWED_ACTIONS,
    NON_URGENT_ACTIONS,
    Rule,
    choose_action,
    concerns_many,
    gives_orders,
    is_stated,
    matching_rules,
    mentions_danger,
)

if TYPE_CHECKING:
    from include.streams import Message
    from include.streams.inference.model import ChatModel

log = logging.getLogger(__name__)

# Chosen on benchmarks/water/triage/development.jsonl, see `make eval-triage`.
# If the nearest example is less similar, the request is not understood: greetings, other languages, riddles.
MIN_SIMILARITY = 0.34
# A sentence that is this similar to a severe example counts, whatever the rest of the request is about.
SEVERE_SENTENCE_SIMILARITY = 0.5
NEIGHBOURS = 5
# Neighbors are weighted by this power of their similarity: three vague neighbors must not outvote one that fits.
POWER = 4
# Among the neighbors this close to the best, the most severe one determines the severity.
SEVERITY_MARGIN = 0.05
# A long request is divided into at most this many parts for the comparison; each part takes 5 ms.
MAX_PARTS = 12

# Words that only triage uses; a customer who writes them wants to influence it.
INTERNAL_WORDS = frozenset(action.value for action in Action) | {
    "target_kind",
    "fallback_reason",
    "earlier_requests",
    "nearby_alerts",
    "search_runbooks",
    "network_sites",
    # Only those with an underscore: "billing" and "meter" are ordinary words.
    *(category.value for category in Category if "_" in category.value),
}

# Executed at once by day, and sends a crew. The model may not decide this alone: a customer may have tricked it.
DISPATCHING_ACTIONS = frozenset({Action.dispatch_crew})
# The offline engine confirms a dispatching action if it would propose one of these.
CONFIRMING_ACTIONS = frozenset({Action.dispatch_crew, Action.close_valve})
# The text itself must say that the trouble is here and now; otherwise a person reads the request. Without this check, a
# proposal could mislead the approver.
EMERGENCY_ACTIONS = CONFIRMING_ACTIONS | {Action.advise_not_to_drink}
# A sentence this similar to a minor example means that the request is about two matters. A person separates them.
ANOTHER_MATTER_SIMILARITY = 0.5
# A customer without water also writes about the pressure: that counts as one subject.
SUPPLY = frozenset({Category.burst_pipe, Category.no_water, Category.low_pressure})

# The offline engine's summaries. They do not quote the customer's text.
SUMMARIES = {
    Category.burst_pipe: "Water escapes outside: a burst or leaking pipe is reported.",
    Category.no_water: "A failure of the supply is reported.",
    Category.water_quality: "Something about the quality of the water is reported or asked.",
    Category.low_pressure: "Too little or too much pressure is reported.",
    Category.billing: "About a bill, a payment or a tariff.",
    Category.meter: "About a meter or a reading.",
    Category.other: "About something else.",
}
NOT_UNDERSTOOD = "Not understood by the offline engine: a person has to read the request."
SUSPICIOUS = "The text gives instructions to a machine or hides something: a person has to read the request."


def propose(message: Message) -> Proposal:
    """Propose an action for the request in a message. Raises only when Airflow or the installation fails.

    Args:
        message: A message with a ServiceRequest.

    Returns:
        The proposal of the model, or of the offline engine.
    """
    from include.streams.inference.model import Misconfigured, from_connection

    request: ServiceRequest = message.event  # type: ignore[assignment]
    try:
        model = from_connection()
    except Misconfigured as error:
        log.warning("model not asked: %s", error)
        return _offline(request, fallback_reason=str(error))
    proposal = propose_offline(request) if model is None else propose_with(model, request)
    log.info(
        "proposed: message=%s engine=%s category=%s action=%s fallback=%s",
        message,
        proposal.engine,
        proposal.decision.category,
        proposal.decision.action,
        proposal.fallback_reason,
    )
    return proposal


def propose_with(model: ChatModel, request: ServiceRequest) -> Proposal:
    """The model's proposal, or the offline engine's if the model gives no usable answer.

    Args:
        model: The model of the connection `llm`.
        request: The customer's request.
    """
    from include.streams.inference import agent
    from include.streams.inference.model import ModelFailed
    from include.water.triage.tools import tools_for

    text = _text(request)
    # The model does not get such a text: it could be tricked into a summary that deceives the approver.
    if _signs(request) or gives_orders(text):
        return _offline(request, fallback_reason="signs of manipulation, or orders", model_asked=model.settings.model)
    rules = matching_rules(text)
    task = agent.Task(
        system=SYSTEM,
        user=user_prompt(request),
        tools=tools_for(request),
        output=TriageDecision,
        evidence=lambda decision: decision.evidence,
        check=lambda decision: _check(decision, request, rules),
    )
    trace = agent.Trace()
    origin: dict[str, Any] = {"model_asked": model.settings.model, "prompt_version": PROMPT_VERSION}
    try:
        decision = agent.run(model, task, trace)
    except ModelFailed as error:
        log.warning("model failed, the offline engine stands in: reason=%s", error.reason)
        return _offline(request, fallback_reason=error.reason, **origin, **_account(trace))
    summary = redact(clean(decision.summary, 300).text.replace("\n", " "), known=(request.address,)).text
    # The summary is empty if it consisted of invisible characters only.
    decision = decision.model_copy(update={"summary": summary[:300] or SUMMARIES[decision.category]})
    explanation = {}
    if decision.action in DISPATCHING_ACTIONS:
        second = _offline(request)
        if second.decision.action not in CONFIRMING_ACTIONS:
            explanation = {**second.explanation, "handed_over": f"only the model would {decision.action}"}
            customer = Target(kind=TargetKind.customer, id=request.customer_id)
            decision = decision.model_copy(update={"action": Action.hand_to_person, "target": customer})
    return Proposal(decision, engine="llm", explanation=explanation, **origin, **_account(trace))


def propose_offline(request: ServiceRequest) -> Proposal:
    """The proposal of rules and labeled examples. Its only reasons are the rule, the examples and their similarity."""
    return _offline(request)


def _offline(request: ServiceRequest, **origin: Any) -> Proposal:
    rules = matching_rules(_text(request))
    parts = _parts(request)
    nearest = index().nearest(parts)
    best = max((matches[0] for matches in nearest), key=lambda match: match.similarity)
    explanation: dict[str, Any] = {
        "rule": rules[0].name if rules else None,
        "nearest": [{"example": match.name, "similarity": match.similarity} for match in nearest[0][:3]],
        "similarity": best.similarity,
    }
    if signs := _signs(request):
        explanation["signs"] = list(signs)
    if not rules and best.similarity < MIN_SIMILARITY:
        category, severity, summary = Category.other, Severity.major, NOT_UNDERSTOOD
        hand_over = "below the threshold"
    else:
        category, severity, hand_over = _classify(rules, nearest)
        if category == Category.low_pressure and concerns_many(_text(request)):
            severity = max(severity, Severity.major, key=lambda severity: severity.rank)
        summary = SUMMARIES[category]
    if gives_orders(parts[0]):
        hand_over = "asks for what only a person may order"
    if not hand_over:
        hand_over = _doubt(request, category, severity, rules, nearest)
    if signs:
        hand_over, summary = "signs of manipulation", SUSPICIOUS
    action, target = choose_action(request, category, severity)
    if hand_over:
        action, target = Action.hand_to_person, Target(kind=TargetKind.customer, id=request.customer_id)
    if action == Action.hand_to_person:
        explanation["handed_over"] = hand_over or "no action for this kind of request, or no known district"
    decision = TriageDecision(category=category, severity=severity, summary=summary, action=action, target=target)
    return Proposal(decision, engine="offline", explanation=explanation, **origin)


def _classify(rules: Sequence[Rule], nearest: list[list[Match]]) -> tuple[Category, Severity, str | None]:
    """The category, the severity and, if a person should look at the request first, the reason."""
    known = examples()
    whole = nearest[0]
    category = _vote(whole, known)
    voters = [m for m in whole if known[m.name].category == category]
    severity = max(
        (known[m.name].severity for m in voters if m.similarity >= voters[0].similarity - SEVERITY_MARGIN),
        key=lambda severity: severity.rank,
    )
    if rules:
        rule = rules[0]
        if any(other.category != rule.category for other in rules):
            return rule.category, rule.severity, "rules disagree"
        # The words and the whole text can mean different things ("thank you for the burst pipe"): then no crew is sent.
        agree = rule.category == category or _supported(rule, nearest, known)
        return rule.category, rule.severity, None if agree else "rule and examples disagree"
    alarming = [
        known[matches[0].name]
        for matches in nearest[1:]
        if matches[0].similarity >= SEVERE_SENTENCE_SIMILARITY
        and known[matches[0].name].severity.rank > severity.rank
        and known[matches[0].name].category != category
    ]
    if alarming and severity == Severity.minor:
        worst = max(alarming, key=lambda example: example.severity.rank)
        return worst.category, worst.severity, "one sentence is more severe than the rest"
    return category, severity, None


def _doubt(
    request: ServiceRequest, category: Category, severity: Severity, rules: Sequence[Rule], nearest: list[list[Match]]
) -> str | None:
    """Why a person should read the request before anything is done, or None.

    Rules and examples compare words. They do not see how the words are used.
    """
    action, _ = choose_action(request, category, severity)
    text = clean(request.text, MAX_TEXT_CHARS).text
    if action in NON_URGENT_ACTIONS:
        if mentions_danger(text):
            return "a word about danger, and nothing urgent was understood"
        if category == Category.no_water and is_stated(request.subject, text, category, None):
            return "a supply that is out, and nothing urgent was understood"
    if action not in EMERGENCY_ACTIONS:
        return None
    if not is_stated(request.subject, text, category, rules[0] if rules else None):
        return "not plainly reported as happening here and now"
    known = examples()
    # Stories are somewhat similar to many examples and very similar to none.
    close = [
        match
        for matches in nearest[1:]
        for match in matches
        if match.similarity >= SEVERE_SENTENCE_SIMILARITY and known[match.name].category in SUPPLY
    ]
    if action in DISPATCHING_ACTIONS:
        if not rules and all(known[match.name].severity == Severity.minor for match in close):
            return "no sentence is close to an example of something severe"
        others = [
            known[matches[0].name] for matches in nearest[1:] if matches[0].similarity >= ANOTHER_MATTER_SIMILARITY
        ]
        if any(other.severity == Severity.minor and other.category not in SUPPLY for other in others):
            return "the request is about something else as well"
    return None


def _vote(matches: list[Match], known: dict[str, Example]) -> Category:
    weights: dict[Category, float] = defaultdict(float)
    for match in matches[:NEIGHBOURS]:
        weights[known[match.name].category] += max(match.similarity, 0.0) ** POWER
    return max(weights, key=lambda category: weights[category])


def _supported(rule: Rule, nearest: list[list[Match]], known: dict[str, Example]) -> bool:
    """Whether the nearest example of some sentence has the rule's category."""
    return any(known[matches[0].name].category == rule.category for matches in nearest[1:])


def _check(decision: TriageDecision, request: ServiceRequest, rules: Sequence[Rule]) -> None:
    """Raise agent.Refused for a proposal that the model may not make, whatever it was told."""
    from include.streams.inference.agent import Refused

    if reason := allowed(decision, request):
        raise Refused(reason)
    if decision.action not in ALLOWED_ACTIONS[decision.category]:
        raise Refused(f"{decision.action} makes no sense for {decision.category}")
    if rules and decision.action in NON_URGENT_ACTIONS:
        raise Refused(f"the rule {rules[0].name} found something urgent; hand it to a person if it is not")


def _account(trace: Any) -> dict[str, Any]:
    return {
        "model_answered": trace.model_answered,
        "tool_calls": tuple(trace.tool_calls),
        "usage": trace.usage,
    }


def _text(request: ServiceRequest) -> str:
    return clean(f"{request.subject}. {request.text}", MAX_TEXT_CHARS + 200).text


def _signs(request: ServiceRequest) -> tuple[str, ...]:
    # On separate lines, so that a forged role ("system:") is at the beginning of a line. The address is free text too.
    whole = "\n".join((request.subject, request.text, request.address or ""))
    return signs_of_manipulation(clean(whole, MAX_TEXT_CHARS + 400), INTERNAL_WORDS)


def _parts(request: ServiceRequest) -> list[str]:
    """The whole text, then its sentences; if there are too many, some sentences are joined.

    The sentences are compared too, so that a sentence about another matter is noticed.
    """
    text = clean(request.text, MAX_TEXT_CHARS).text
    sentences = [part for part in re.split(r"(?<=[.!?])\s+|\n", text) if len(part.split()) > 2]
    size = -(-len(sentences) // MAX_PARTS) or 1
    joined = [" ".join(sentences[start : start + size]) for start in range(0, len(sentences), size)]
    return [_text(request), *joined]
