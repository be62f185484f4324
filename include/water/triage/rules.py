"""What code knows about requests: words that must never be missed, and what to do about what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

from include.water.sites import DISTRICTS
from include.water.topics import Action, ServiceRequest, Severity, TargetKind
from include.water.triage.policy import TARGETS
from include.water.triage.proposals import Category, Target


@dataclass(frozen=True)
class Rule:
    """Text that matches is this; `name` is what the decision gives as its reason."""

    name: str
    category: Category
    severity: Severity
    pattern: re.Pattern[str]


def _rule(name: str, category: Category, severity: Severity, pattern: str) -> Rule:
    return Rule(name, category, severity, re.compile(pattern, re.IGNORECASE | re.VERBOSE))


_FRAGILE = r"""(?:hospital|clinic|surgery|intensive\ care|\bicu\b|ward\b|dialys\w*|haemodialys\w*|hemodialys\w*|
        dialyz\w*|
    (?:nursing|care|retirement|old\ people'?s)\ home|bedridden|hospice|newborn|pflegeheim|krankenhaus|hôpital)"""
_NO_WATER = r"""(?:(?:no|without|lost|lack\ of|out\ of|not\ a\ drop\ of)\ (?:any\ |all\ |running\ |the\ |its\ |our\ )?
    (?:water|supply)|not\ a\ drop|(?:water|supply)\ (?:has\ |is\ |was\ )?(?:failed|gone|off|cut|stopped)|
        taps?\ (?:are\ |have\ |
    went\ |has\ |is\ |ran\ |run\ )*(?:dry|empty|dead)|kein\ wasser|sin\ agua|no\ hay\ agua|pas\ d'eau|plus\ d'eau)"""
_ILL = r"""(?:sick|(?:been|are|is|fell|fall|became|become|feel(?:ing)?)\ ill|vomit\w*|throwing\ up|threw\ up|diarrh\w*|
    stomach\ (?:cramps?|aches?|pains?)|cramps|nausea\w*|poison(?:ed|ing)|erbrech\w*|vomitando|vomissements)"""
_DRUNK = r"(?:water|tap|drink|drank|drunk|agua|wasser|l'eau)"

# The most severe first. They look for the few things where a missed request could cost lives or flood a street; all
# else is left to the examples. `[^.!?\n]` keeps a rule within a sentence.
RULES = (
    _rule(
        "no_water_for_the_fragile",
        Category.no_water,
        Severity.critical,
        rf"{_FRAGILE}[^?\n]{{0,120}}{_NO_WATER}|{_NO_WATER}[^?\n]{{0,120}}{_FRAGILE}",
    ),
    _rule(
        "no_water_for_firefighters",
        Category.no_water,
        Severity.critical,
        r"(?:fire\ ?fighters?|fire\ (?:brigade|department|crew)|burning|on\ fire)[^?\n]{0,80}(?:no\ water|"
        r"without\ water|dry|"
        r"(?:can't|cannot)\ get\ water)|hydrants?[^.!?\n]{0,40}\b(?:dry|no\ water|empty)\b[^?\n]{0,60}(?:fire|burn)",
    ),
    _rule(
        "ill_from_water",
        Category.water_quality,
        Severity.critical,
        rf"{_ILL}[^?\n]{{0,160}}\b{_DRUNK}\b|\b{_DRUNK}\b[^?\n]{{0,160}}{_ILL}",
    ),
    _rule(
        "smell_of_fuel_chemicals_or_sewage",
        Category.water_quality,
        Severity.critical,
        r"(?:smell\w*|taste\w*|reek\w*|stinks?|stinking|odou?r|huele|riecht|film|layer)[^.!?\n]{0,40}\b(?:petrol|"
        r"gasoline|gas|"
        r"diesel|fuel|oil|oily|kerosene|paint|solvent|thinner|chemicals?|cleaning\ agent|pesticides?|sewage|sewer|"
        r"faeces|feces|"
        r"excrement|toilet|gasolina|benzin)\b|\b(?:oily|petrol|diesel)\b[^.!?\n]{0,30}\b(?:film|layer|smell|taste)",
    ),
    _rule(
        "source_contaminated",
        Category.water_quality,
        Severity.critical,
        r"(?:dump\w*|pour\w*|empt(?:y|ie[sd]|ying)|drain(?:s|ed|ing)|spill\w*|leak\w*|threw|throw\w*)[^.!?\n]{0,60}"
        r"(?:into|in)\ (?:the\ |your\ )?(?:\w+\ ){0,2}(?:reservoir|lake|intake|stream|well)\b",
    ),
    _rule(
        "threat_or_break_in",
        Category.other,
        Severity.critical,
        r"(?:cut|cutting|forc\w+|climb\w*|break\w*|broke)\b[^.!?\n]{0,40}\b(?:fence|gate|"
        r"roof)[^.!?\n]{0,60}\b(?:tank|plant|"
        r"reservoir|pump\w*|waterworks)|\b(?:poison|put\ something\ in\w*)\b[^.!?\n]{0,40}\bwater\b|"
        r"(?:fallen|fell)\ in(?:to)?\ (?:the|your)\ (?:basin|reservoir|shaft|canal)",
    ),
    _rule(
        "water_near_electricity",
        Category.burst_pipe,
        Severity.critical,
        r"(?:spray\w*|leak\w*|gush\w*|pour\w*|flood\w*|burst|running|broken\ pipe|pipe)[^?\n]{0,80}(?:transformer|"
        r"substation|"
        r"electric(?:al|ity)?\ (?:box|cabinet|cable|kiosk)|power\ (?:cables?|lines?|box)|sparks?|live\ wires?)",
    ),
    _rule(
        "street_flooded",
        Category.burst_pipe,
        Severity.critical,
        r"""(?:street|road|junction|crossing|square|underpass|highway|car\ park|garages?|basements?|
        cellars?)\b[^.!?\n]{0,40}
            \b(?:flooded|flooding|under\ water|knee[- ]deep|ankle[- ]deep|is\ a\ river)
        |\b(?:river|torrent|wall|jet|fountain|geyser|masses)\ of\ water\b[^.!?\n]{0,60}\b(?:street|road|hill|
        ground|roundabout|
            houses?|asphalt|pavement)
        |\b(?:geyser|fountain)\b[^.!?\n]{0,60}\b(?:street|road|junction|high|metres|meters|feet|hydrant)
        |\b(?:gushing|shooting|pouring|spraying|bursting|surging)\b[^.!?\n]{0,60}\b(?:street|road|ground|hydrant|
        asphalt|tarmac|
            hill|everywhere|main)
        |\bsink\ ?hole\b|(?:asphalt|tarmac|road|street)[^.!?\n]{0,20}\b(?:collapsed|caved\ in|lifting|opened\ up)
        |(?:straße|strasse|keller)[^.!?\n]{0,30}(?:unter\ wasser|überflutet)|rue[^.!?\n]{0,20}inondée|
        calle[^.!?\n]{0,20}inundada
        """,
    ),
    _rule(
        "main_burst",
        Category.burst_pipe,
        Severity.critical,
        r"""(?:main|pipe|line)\b[^.!?\n]{0,20}\b(?:has|have|just|must\ have|is)\b[^.!?\n]{0,12}\b(?:burst|
        ruptured|exploded|broken)\b
        |\b(?:hit|struck|cut|drilled|went)\b[^.!?\n]{0,30}\b(?:your|water|mm|inch)\b[^.!?\n]{0,10}\b(?:main|pipe|line)\b
        |\b(?:sheared|knocked)\ (?:off|over)[^.!?\n]{0,20}hydrant|rohrbruch|canalisation\ a\ éclaté""",
    ),
)


# Customers report; what is done to a valve or to somebody else is not theirs to order.
_ORDERS = re.compile(
    r"\b(?:close|shut|open|turn\s+off|cut\s+off|disconnect)\b[^.!?\n]{0,40}\b(?:valves?|districts?|customers?|neighbou?rs?|"
    r"supply\s+of|water\s+of)\b|\b(?:advise|warn|tell)\b[^.!?\n]{0,40}\bnot\s+to\s+drink\b",
    re.IGNORECASE,
)


def find(text: str) -> tuple[Rule, ...]:
    """The rules that the text matches, in the order of RULES."""
    return tuple(rule for rule in RULES if rule.pattern.search(text))


def gives_orders(text: str) -> bool:
    """Whether it asks for what only the people on duty decide: not wrong, and nothing to do at once."""
    return _ORDERS.search(text) is not None


# What to do, and to what: the first kind of target that the request has. What is not here is left to a person.
_customer, _district = TargetKind.customer, TargetKind.district
ACTIONS = MappingProxyType(
    {
        (Category.burst_pipe, Severity.critical): (Action.close_valve, _district),
        (Category.burst_pipe, Severity.major): (Action.dispatch_crew, _customer),
        (Category.burst_pipe, Severity.minor): (Action.schedule_inspection, _customer),
        (Category.no_water, Severity.critical): (Action.dispatch_crew, _customer),
        (Category.no_water, Severity.major): (Action.dispatch_crew, _customer),
        (Category.no_water, Severity.minor): (Action.send_information, _customer),
        (Category.water_quality, Severity.critical): (Action.advise_not_to_drink, _district),
        (Category.water_quality, Severity.major): (Action.schedule_inspection, _customer),
        (Category.water_quality, Severity.minor): (Action.send_information, _customer),
        (Category.low_pressure, Severity.major): (Action.schedule_inspection, _customer),
        (Category.low_pressure, Severity.minor): (Action.open_ticket, _customer),
        (Category.billing, Severity.minor): (Action.open_ticket, _customer),
        (Category.meter, Severity.minor): (Action.open_ticket, _customer),
        (Category.other, Severity.minor): (Action.open_ticket, _customer),
    }
)

# Nothing else makes sense for the category, whatever a model says: nobody closes a valve because of a bill.
SENSIBLE = MappingProxyType(
    {
        category: frozenset(
            {action for (of, _), (action, _) in ACTIONS.items() if of == category}
            | {Action.open_ticket, Action.send_information, Action.hand_to_person}
        )
        for category in Category
    }
)
# What nobody sees to at once.
UNHURRIED = frozenset({Action.send_information, Action.open_ticket})


def act(request: ServiceRequest, category: Category, severity: Severity) -> tuple[Action, Target]:
    """What to do about a request of this kind, and to what; a person's business when the table has nothing for it."""
    customer = Target(kind=_customer, id=request.customer_id)
    action, kind = ACTIONS.get((category, severity), (Action.hand_to_person, _customer))
    if kind == _customer:
        return action, customer
    # A request can name a district that the network does not have, or none.
    if request.district_id is not None and request.district_id in DISTRICTS:
        return action, Target(kind=kind, id=request.district_id)
    if _customer in TARGETS[action]:
        return action, customer
    return Action.hand_to_person, customer
