"""The words in a request that must never be missed, and the action for each kind of request."""

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
    """A pattern, and the category and severity of the texts that match it; `name` is recorded as the reason."""

    name: str
    category: Category
    severity: Severity
    pattern: re.Pattern[str]


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE | re.VERBOSE)


_FRAGILE = r"""(?:hospital|clinic|surgery|intensive\ care|\bicu\b|ward\b|dialy[sz]|bedridden|hospice|newborn
    |(?:nursing|care|retirement|old\ people'?s)\ home|pflegeheim|krankenhaus|hôpital)"""
_NO_WATER = r"""(?:(?:no|without|lost|lack\ of|out\ of|not\ a\ drop\ of)
        \ (?:any\ |all\ |running\ |the\ |its\ |our\ )?(?:water|supply)
    |not\ a\ drop|(?:water|supply)\ (?:has\ |is\ |was\ )?(?:failed|gone|off|cut|stopped)
    |taps?\ (?:are\ |have\ |went\ |has\ |is\ |ran\ |run\ )*(?:dry|empty|dead)
    |kein\ wasser|sin\ agua|no\ hay\ agua|pas\ d'eau|plus\ d'eau)"""
_ILL = r"""(?:sick|(?:been|are|is|fell|fall|became|become|feel(?:ing)?)\ ill|vomit\w*|throwing\ up|threw\ up
    |diarrh\w*|stomach\ (?:cramps?|aches?|pains?)|cramps|nausea\w*|poison(?:ed|ing)|erbrech\w*|vomitando
    |vomissements)"""
_DRUNK = r"(?:water|tap|drink|drank|drunk|agua|wasser|l'eau)"

# The most severe first. The rules find the few cases in which a missed request could cost lives or flood a street; the
# examples decide all others. `[^.!?\n]` keeps a match within a sentence.
_CRITICAL = {
    Category.no_water: {
        "no_water_for_the_fragile": rf"{_FRAGILE}[^?\n]{{0,120}}{_NO_WATER}|{_NO_WATER}[^?\n]{{0,120}}{_FRAGILE}",
        "no_water_for_firefighters": r"""(?:fire\ ?fighters?|fire\ (?:brigade|department|crew)|burning
                |on\ fire)[^?\n]{0,80}(?:no\ water|without\ water|dry|(?:can't|cannot)\ get\ water)
            |hydrants?[^.!?\n]{0,40}\b(?:dry|no\ water|empty)\b[^?\n]{0,60}(?:fire|burn)""",
    },
    Category.water_quality: {
        "ill_from_water": rf"{_ILL}[^?\n]{{0,160}}\b{_DRUNK}\b|\b{_DRUNK}\b[^?\n]{{0,160}}{_ILL}",
        "smell_of_fuel_chemicals_or_sewage": r"""(?:smell\w*|taste\w*|reek\w*|stinks?|stinking|odou?r|huele|riecht
                |film|layer)[^.!?\n]{0,40}\b(?:petrol|gasoline|gas|diesel|fuel|oil|oily|kerosene|paint|solvent
                |thinner|chemicals?|cleaning\ agent|pesticides?|sewage|sewer|faeces|feces|excrement|toilet|gasolina
                |benzin)\b
            |\b(?:oily|petrol|diesel)\b[^.!?\n]{0,30}\b(?:film|layer|smell|taste)""",
        "source_contaminated": r"""(?:dump\w*|pour\w*|empt(?:y|ie[sd]|ying)|drain(?:s|ed|ing)|spill\w*|leak\w*|threw
            |throw\w*)[^.!?\n]{0,60}(?:into|in)\ (?:the\ |your\ )?(?:\w+\ ){0,2}(?:reservoir|lake|intake|stream
            |well)\b""",
    },
    Category.other: {
        "threat_or_break_in": r"""(?:cut|cutting|forc\w+|climb\w*|break\w*|broke)\b[^.!?\n]{0,40}\b(?:fence|gate
                |roof)[^.!?\n]{0,60}\b(?:tank|plant|reservoir|pump\w*|waterworks)
            |\b(?:poison|put\ something\ in\w*)\b[^.!?\n]{0,40}\bwater\b
            |(?:fallen|fell)\ in(?:to)?\ (?:the|your)\ (?:basin|reservoir|shaft|canal)""",
    },
    Category.burst_pipe: {
        "water_near_electricity": r"""(?:spray\w*|leak\w*|gush\w*|pour\w*|flood\w*|burst|running|broken\ pipe
            |pipe)[^?\n]{0,80}(?:transformer|substation|electric(?:al|ity)?\ (?:box|cabinet|cable|kiosk)
            |power\ (?:cables?|lines?|box)|sparks?|live\ wires?)""",
        "street_flooded": r"""(?:street|road|junction|crossing|square|underpass|highway|car\ park|garages?
                |basements?|cellars?)\b[^.!?\n]{0,40}\b(?:flooded|flooding|under\ water|knee[- ]deep|ankle[- ]deep
                |is\ a\ river)
            |\b(?:river|torrent|wall|jet|fountain|geyser|masses)\ of\ water\b[^.!?\n]{0,60}\b(?:street|road|hill
                |ground|roundabout|houses?|asphalt|pavement)
            |\b(?:geyser|fountain)\b[^.!?\n]{0,60}\b(?:street|road|junction|high|metres|meters|feet|hydrant)
            |\b(?:gushing|shooting|pouring|spraying|bursting|surging)\b[^.!?\n]{0,60}\b(?:street|road|ground|hydrant
                |asphalt|tarmac|hill|everywhere|main)
            |\bsink\ ?hole\b
            |(?:asphalt|tarmac|road|street|carriageway|pavement)[^.!?\n]{0,20}\b(?:collapsed|caved\ in|lift(?:ing
                |ed)|opened\ up|sunk|subsided|given\ way|gave\ way|burst\ open)
            |(?:straße|strasse|keller)[^.!?\n]{0,30}(?:unter\ wasser|überflutet)|rue[^.!?\n]{0,20}inondée
            |calle[^.!?\n]{0,20}inundada""",
        "main_burst": r"""(?:main|pipe|line)\b[^.!?\n]{0,20}\b(?:has|have|just|must\ have
                |is)\b[^.!?\n]{0,12}\b(?:burst|ruptured|exploded|broken)\b
            |\b(?:hit|struck|cut|drilled|went)\b[^.!?\n]{0,30}\b(?:your|water|mm|inch)\b[^.!?\n]{0,10}\b(?:main|pipe
                |line)\b
            |\b(?:sheared|knocked)\ (?:off|over)[^.!?\n]{0,20}hydrant|rohrbruch|canalisation\ a\ éclaté""",
    },
}
RULES = tuple(
    Rule(name, category, Severity.critical, _pattern(pattern))
    for category, patterns in _CRITICAL.items()
    for name, pattern in patterns.items()
)


# Words about the trouble itself. Examples also match similar texts, such as "there is nothing left in my account", so
# no emergency action is based on examples without such a word.
_TROUBLE = MappingProxyType(
    {
        Category.no_water: _pattern(rf"""{_NO_WATER}
            |\bw[a']?te?r\b[^.!?\n]{{0,30}}\b(?:off|gone|cut|stopped|interrupted|failed|lost)\b
            |\b(?:no|without)\b[^.!?\n]{{0,25}}\b(?:wate?r|wter|supply)\b
            |\bsupply\b[^.!?\n]{{0,30}}\b(?:off|dropped|ran\ dry)\b
            |\b(?:is|are|been)\ off\ since\b|\bhas\ been\ off\b
            |\bnothing\ (?:comes|came|coming|from|out|but\ air)\b
            |\b(?:taps?|hydrants?)\b[^.!?\n]{{0,40}}\b(?:dry|dead|nothing|hiss\w*|air)\b
            |\b(?:neither|no)\b[^.!?\n]{{0,40}}\bgives?\ (?:any\ )?water\b"""),
        Category.burst_pipe: _pattern(r"""\b(?:leak\w*|seep\w*|trickl\w*|bubbl\w*|puddles?|gush\w*|soaked|bog
                |geyser|flood\w*|burst\w*|ruptured)\b
            |\bwater\b[^.!?\n]{0,60}\b(?:run(?:s|ning)?|flow\w*|com(?:es?|ing)|boil\w*|rising|pour\w*|shoot\w*
                |spray\w*|wells?)\b
            |\b(?:pavement|road|street|gutter|cellar|basement|wall|ground|asphalt|tarmac)\b[^.!?\n]{0,40}\b(?:wet
                |damp|deep|running)\b"""),
        Category.water_quality: _pattern(rf"""{_ILL}
            |\b(?:smell\w*|taste\w*|stink\w*|stench|reek\w*|oily|film|dump\w*|dead\ animals?|contaminat\w*|brown
                |yellow|cloudy|black)\b
            |\b(?:into|in)\ the\ (?:\w+\ )?(?:reservoir|tank|intake)\b"""),
    }
)

# Quoted text: quotations of several words, and the questions of the person who took the call.
_QUOTED = _pattern(r"""(?<!\w)["“„«][^"”»“\n]{12,600}["”»“]
    |(?<!\w)['\u2018](?=\w+\W+\w+\W+\w)[^\n\u2018]{12,600}?['\u2019](?!\w)
    |\b(?:agent|operator|dispatcher|clerk|hotline)\s?:.{0,600}?(?=\b(?:caller|customer|client)\s?:|$)""")
_CONDITION = _pattern(r"""\b(?:if|unless|assum(?:e|ing)|suppos(?:e|ing)|imagin(?:e|ing)|in\ case|in\ the\ event
    |what\ would|would\ you|would\ happen|should\ (?:a|an|the|our|my|any|there|it)|whenever|as\ though)\b""")
# "Not without water": a denial before the trouble, in the same clause. "Cannot" and "does not stop" are no denials.
_DENIAL = _pattern(r"""\b(?:not|never|nobody|no\ one|none|neither|nor|no|(?:is|are|was|were|has|have|had|does|do
    |did)n['\u2019]t)\b(?!\ (?:stop|only|just|longer|more))[^,;:.!?\n]{0,30}$""")
_DOUBLE_DENIAL = _pattern(r"""\b(?:not|never|nobody|no\ one|neither|nor|(?:is|are|was|were|has|have
    |had)n['\u2019]t)\b[^,;:.!?\n]{0,20}\b(?:without|out\ of\ (?:water|supply)|lost|lack\w*)\b""")
# Phrases of texts that do not report what happens here and now in the utility's network.
_NO_REPORTS = {
    "invented": r"""\b(?:drill|exercise|rehears\w*|film\ (?:scene|permit|crew)|scene|novel|fiction\w*
        |creative\ writing|screenplay|script(?:ed)?|translat\w+|how\ do\ you\ say|newspaper|gazette|pretend\w*|lorem
        |curious|no\ real\ event|told\ to\ (?:write|say)|(?:test|testing)\ (?:of|message|only)
        |this\ is\ (?:only\ |just\ )?a\ test|dream\w*)\b""",
    "untrue or hearsay": r"""\b(?:untrue|not\ true|false|den(?:y|ies|ied|ying)|nonsense|lies?|lied|misheard
        |mistaken\w*|haha|jok(?:e|ing)|rumou?rs?|claim(?:s|ed|ing)\ that|keeps?\ (?:telling|saying)|(?:somebody
        |someone|people|they)\ (?:wrote|said|says?|claim(?:s|ed)?|posted)|supposedly|allegedly)\b""",
    "elsewhere": r"""\b(?:abroad|(?:an)?other\ (?:country|town|city|company)|nothing\ to\ do\ with\ you)\b
        |\b(?:sister|brother|daughter|son|mother|father|parents|friend
            |cousin)\b[^.!?\n]{0,20}\ (?:lives\ )?in\ (?-i:[A-Z])""",
    "then": r"""\b(?:when\ (?:my|our|i|we)\b[^.!?\n]{0,30}\b(?:was|were)|used\ to|(?:ran|runs|flows|works)\ again
        |years?\ ago|remember\ when|(?:in|since|of)\ (?:\w+\ )?(?:19|20)[0-9]{2}|last\ (?:month|year|spring|summer
        |autumn|winter)|in\ (?:january|february|march|april|may|june|july|august|september|october|november
        |december))\b""",
    "over": r"""\b(?:(?:was|were|been|is|are|got)\ (?:all\ )?(?:mended|repaired|fixed|restored|resolved)|(?:is|are
        |came|come)\ back|(?:everything|all|water)(?:'s|\ is)?\ (?:well|fine|good|excellent|okay|ok|normal)
        |no\ need\ to\ come|nothing\ (?:at\ all\ )?(?:is\ )?wrong|no\ (?:emergency|leaks?|burst|flooding|problems?)
        |mopped\ up|it(?:'s|\ is)\ only\ (?:the|my|a))\b""",
    "to come": r"""\b(?:(?:announced|planned)\ (?:works?|interruption|shut\w*)|(?:leaflet|notice|card|letter)\ says
        |will\ be\ (?:turned|shut|switched|cut)\ off|going\ to\ be\ (?:turned|shut|switched|cut)\ off)\b""",
    "at home": r"""\b(?:dishwasher|washing\ machine|aquarium|pool|pond|garden\ (?:hose|sprinkler)|watered|plumber
        |(?:my|the|our)\ sprinkler|caravan|boiler|my\ own\ (?:fault|pipes?)|on\ purpose|as\ intended
        |after\ the\ (?:rain|\w*storm))\b""",
}
_NO_REPORT = _pattern("|".join(_NO_REPORTS.values()))
_QUESTION = re.compile(
    r"^\W*(?:what|how|would|should|could|can|may|do|does|did|is|are|has|have|was|were|where|who|whom|which)\b.*\?$",
    re.IGNORECASE | re.DOTALL,
)
# A line of at least this many words, without commas and without a word of _GRAMMAR, is a list of words, not a report.
LIST_WORDS = 6
_GRAMMAR = _pattern(r"""\b(?:the|an?|my|our|your|us|we|i|it|its|is|are|was|has|have|had|there|this|from|since|at
    |for|coming|el|mi|un|die|der|das|la|le)\b""")
_ABOUT_WATER = _pattern(rf"""\b(?:{_DRUNK}|taps|drinking|glass|sink|basin|shower|reservoir|tank|intake|stream|lake
    |well|it)\b""")
# A request with one of these words is never answered by information or a ticket alone.
_DANGER = _pattern(r"""\b(?:electrocut\w*|evacuat\w*|trapped|drown(?:s|ed|ing)|injur\w*|collaps\w*|sink\ ?hole
    |swept\ away|(?:ankle|knee|waist|hip)[-\ ]deep|(?:foot|feet|metres?|meters?)\ (?:deep|under)|threaten\w*
    |poison\w*|unconscious)\b""")
_MANY = _pattern(r"""\b(?:every(?:one|body)|all|none\ of|whole|entire)\b[^.!?\n]{0,25}\b(?:flats?|houses?|homes
    |floors?|neighbou?rs|apartments?|tenants|street|road|lane|close|block|building|village|area|court|crescent
    |avenue)\b""")


def reported_sentences(text: str) -> str:
    """The sentences that say what happens here and now, one per line.

    Quotations, conditions and questions are left out. A text about a drill, another place, another time or the
    customer's own appliances has no such sentence. In doubt a sentence is left out: then a person reads the request.
    """
    if _NO_REPORT.search(text):
        return ""
    kept = []
    for sentence in re.split(r"(?<=[.!?])\s+|\n", _QUOTED.sub(" ", text)):
        if _QUESTION.search(sentence.strip()) or _DOUBLE_DENIAL.search(sentence):
            continue
        condition = _CONDITION.search(sentence)
        # The part before "if" still counts: "we have no water, we must close if it lasts".
        kept.append(sentence[: condition.start()] if condition else sentence)
    return "\n".join(part for part in kept if part.strip())


def is_stated(subject: str, text: str, category: Category, rule: Rule | None) -> bool:
    """Whether the text itself says that the trouble exists now: by the rule, or by a word about the trouble.

    Args:
        subject: The request's subject. It can only support a rule, because it may be left over from another message.
        text: The request's text.
        category: The kind of trouble.
        rule: The rule that matched, if any.
    """
    trouble = _TROUBLE.get(category)
    if rule is None:
        return trouble is not None and _reports(trouble, text, category)
    if _reports(rule.pattern, text, category):
        return True
    return (
        trouble is not None
        and _reports(trouble, text, category)
        and _reports(rule.pattern, f"{subject}. {text}", category)
    )


def _reports(pattern: re.Pattern[str], text: str, category: Category) -> bool:
    lines = reported_sentences(text)
    # Rules may span sentences. The positions are the same as in `lines`.
    one_line = lines.replace("\n", " ")
    for match in pattern.finditer(one_line):
        line_end = lines.find("\n", match.end())
        around = lines[lines.rfind("\n", 0, match.start()) + 1 : line_end if line_end >= 0 else len(lines)]
        # "No water" contains a denial itself, so for this category only the text before it counts.
        ends = {match.start()} if category == Category.no_water else {match.start(), match.end()}
        denied = any(_DENIAL.search(one_line[:end]) for end in ends)
        about = category != Category.water_quality or _ABOUT_WATER.search(around)
        if about and not _is_list(around) and not denied:
            return True
    return False


def _is_list(line: str) -> bool:
    return not _GRAMMAR.search(line) and not re.search(r"[,;:]", line) and len(line.split()) >= LIST_WORDS


def mentions_danger(text: str) -> bool:
    """Whether the text has a word about danger to people."""
    return _DANGER.search(text) is not None


def concerns_many(text: str) -> bool:
    """Whether the text reports that more than one household has the trouble."""
    return _MANY.search(reported_sentences(text)) is not None


# A customer cannot order that a valve is closed, or that something is done to somebody else.
_ORDERS = _pattern(r"""\b(?:close|shut|open|turn\s+off|cut\s+off|disconnect)\b[^.!?\n]{0,40}
        \b(?:valves?|districts?|customers?|neighbou?rs?|supply\s+of|water\s+of|(?:his|her|their)\s+(?:water|supply))\b
    |\b(?:cut|shut|turn)\s+(?:him|her|them)\s+off\b
    |\bvalves?\b[^.!?\n]{0,60}\b(?:to\s+be|must\s+be|should\s+be|be)\s+(?:shut|closed|opened)\b
    |\b(?:advise|warn|tell)\b[^.!?\n]{0,40}\bnot\s+to\s+drink\b""")


def matching_rules(text: str) -> tuple[Rule, ...]:
    """The rules that the text matches, in the order of RULES."""
    return tuple(rule for rule in RULES if rule.pattern.search(text))


def gives_orders(text: str) -> bool:
    """Whether the text orders something that only the people on duty may decide."""
    return _ORDERS.search(text) is not None


# The action for each kind of request, and the kind of its target. A person gets all other kinds.
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

# The actions that a model may propose for a category: nobody closes a valve because of a bill.
ALLOWED_ACTIONS = MappingProxyType(
    {
        category: frozenset(
            {action for (of, _), (action, _) in ACTIONS.items() if of == category}
            | {Action.open_ticket, Action.send_information, Action.hand_to_person}
        )
        for category in Category
    }
)
# Actions that are not urgent.
NON_URGENT_ACTIONS = frozenset({Action.send_information, Action.open_ticket})


def choose_action(request: ServiceRequest, category: Category, severity: Severity) -> tuple[Action, Target]:
    """The action for a request of this kind and its target; hand_to_person when ACTIONS has no entry.

    Args:
        request: The request, with its customer and district.
        category: The category of the request.
        severity: The severity of the request.
    """
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
