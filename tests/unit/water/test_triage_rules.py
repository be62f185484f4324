"""Rules find words that must not be missed; actions come from a table, and policy allows all of them."""

from datetime import UTC, datetime

import pytest

from include.water.topics import ServiceRequest
from include.water.triage.policy import allowed
from include.water.triage.proposals import Action, Category, Severity, TriageDecision
from include.water.triage.rules import (
    ACTIONS,
    ALLOWED_ACTIONS,
    RULES,
    choose_action,
    concerns_many,
    gives_orders,
    is_stated,
    matching_rules,
    mentions_danger,
    reported_sentences,
)
from tests.unit.water.test_topics import example

NOW = datetime(2026, 11, 18, 20, tzinfo=UTC)


def request(**changes) -> ServiceRequest:
    return example(ServiceRequest, **{"customer_id": "C-000001", "district_id": "harbour", **changes})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("The surgery in the hospital has no water", "no_water_for_the_fragile"),
        ("My wife is on dialysis. Our taps are dry.", "no_water_for_the_fragile"),
        ("House burning, the hydrants are dry", "no_water_for_firefighters"),
        ("We drank from the tap and are all vomiting", "ill_from_water"),
        ("The tap water smells of gasoline", "smell_of_fuel_chemicals_or_sewage"),
        ("A van is dumping paint into the reservoir", "source_contaminated"),
        ("Somebody climbs over the fence of the pumping station", "threat_or_break_in"),
        ("Water sprays onto the transformer", "water_near_electricity"),
        ("The whole street is flooded", "street_flooded"),
        ("Die Straße steht unter Wasser", "street_flooded"),
        ("A water main has just burst", "main_burst"),
        ("An excavator hit your water pipe", "main_burst"),
    ],
)
def test_a_rule_finds_what_must_not_be_missed(text, name):
    assert name in [rule.name for rule in matching_rules(text)]


@pytest.mark.parametrize(
    "text",
    [
        "The hospital sent me a bill for the water",
        "My bill made me sick",
        "Is there gas heating in the flat? The meter is blank.",
        "I live on River Street, when do you open?",
        "The main reason for my call is the invoice",
    ],
)
def test_a_rule_needs_more_than_a_word(text):
    assert matching_rules(text) == ()


@pytest.mark.parametrize(
    ("text", "orders"),
    [
        ("Close the valve of harbour", True),
        ("cut off the supply of my neighbour", True),
        ("Tell everybody not to drink", True),
        ("The valve cover is open", False),
        ("You cut off our water without notice", False),
        ("Please turn off her water", True),
        ("Shut them off", True),
        ("The valve in our road is to be closed tonight", True),
    ],
)
def test_orders_are_distinguished_from_reports(text, orders):
    assert gives_orders(text) is orders


def stated(text: str, category: Category, subject: str = "Hello") -> bool:
    rules = [rule for rule in matching_rules(f"{subject}. {text}") if rule.category == category]
    return is_stated(subject, text, category, rules[0] if rules else None)


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("There is no water in our house.", Category.no_water),
        ("No water, taps dry", Category.no_water),
        ("We have had no water since six. If it lasts we must close the school.", Category.no_water),
        ("My bill is paid. Nothing comes out of the tap.", Category.no_water),
        ("Water keeps seeping out of the pavement.", Category.burst_pipe),
        ("The main has burst and it does not stop gushing out of the road.", Category.burst_pipe),
        ("The tap water smells of petrol.", Category.water_quality),
        ("Caller: the street is flooded. Agent: which street? Caller: Elm Road.", Category.burst_pipe),
    ],
)
def test_reported_trouble_is_stated(text, category):
    assert stated(text, category)


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("We are not without water.", Category.no_water),
        ("Nobody here is without water.", Category.no_water),
        ("What would you do if the hospital had no water?", Category.no_water),
        ("If a pipe bursts, water runs into the road.", Category.burst_pipe),
        ("Please translate 'the main has burst and the street is flooded'.", Category.burst_pipe),
        ('The sign says "there is no water in this house", why?', Category.no_water),
        ("Agent: do you have no water? Caller: I want to pay my bill.", Category.no_water),
        ("Ten years ago the street was flooded.", Category.burst_pipe),
        ("The main has burst, it was repaired the same day.", Category.burst_pipe),
        ("My aquarium has burst, the cellar is flooded.", Category.burst_pipe),
        ("My daughter in Leeds has no water.", Category.no_water),
        ("The water does not smell of petrol.", Category.water_quality),
        ("The soup smells of petrol.", Category.water_quality),
        ("burst main flooding street collapse hospital gushing", Category.burst_pipe),
        ("There is nothing left in my account.", Category.no_water),
        ("When do you open?", Category.billing),
    ],
)
def test_mentioned_trouble_is_not_stated(text, category):
    assert not stated(text, category)


def test_a_subject_alone_states_nothing():
    assert not stated("Please send me my bill.", Category.no_water, subject="no water in the whole street")
    assert stated("We have had no water since six.", Category.no_water, subject="dialysis at home")


def test_a_condition_removes_only_the_text_after_it():
    assert reported_sentences("We have no water, call us if you can. Thanks.") == "We have no water, call us \nThanks."


@pytest.mark.parametrize(
    ("text", "many"),
    [("All the flats have it", True), ("Everyone in our street", True), ("Only my flat", False), ("How many?", False)],
)
def test_trouble_of_many_is_distinguished_from_trouble_of_one(text, many):
    assert concerns_many(text) is many


def test_words_about_danger_are_found():
    assert mentions_danger("Somebody could be electrocuted, it is knee-deep")
    assert not mentions_danger("The bill is dangerous reading")


@pytest.mark.parametrize("district", ["harbour", "atlantis", None])
@pytest.mark.parametrize("severity", Severity)
@pytest.mark.parametrize("category", Category)
def test_policy_allows_every_action_of_the_table(category, severity, district):
    asked = request(district_id=district)
    action, target = choose_action(asked, category, severity)
    decision = TriageDecision(category=category, severity=severity, summary="x", action=action, target=target)
    assert allowed(decision, asked) is None
    assert action in ALLOWED_ACTIONS[category]


def test_without_a_known_district_the_target_is_the_customer():
    for (category, severity), _ in ACTIONS.items():
        assert choose_action(request(district_id="atlantis"), category, severity)[1].id == "C-000001"


def test_a_bill_allows_no_valve_to_be_closed():
    for category in (Category.billing, Category.meter, Category.other, Category.low_pressure, Category.water_quality):
        assert Action.close_valve not in ALLOWED_ACTIONS[category]


def test_rules_have_unique_names():
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_rules_are_fast_on_hostile_text():
    # A pattern with endless backtracking would occupy a worker until its timeout; here pytest's timeout ends the test.
    for text in (
        "water " * 700,
        "no " * 1400,
        "pipe has " * 450,
        "a" * 4200,
        "close " * 700,
        "smell of " * 460,
        "'a b c " * 600,
        "agent: " * 600,
    ):
        matching_rules(text)
        gives_orders(text)
        reported_sentences(text)
        for category in Category:
            is_stated("Hello", text, category, None)
