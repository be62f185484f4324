"""An approval is bound to the content of the proposal, not to the form of its JSON."""

import json
from datetime import UTC, datetime
from enum import StrEnum

import pytest

from include.streams.inference.binding import canonical_json, proposal_hash

PROPOSAL = {"action": "open", "target": {"kind": "door", "id": "A-1"}, "evidence": ["x", "y"], "note": "Grüße", "n": 1}


class Action(StrEnum):
    open = "open"


def test_the_order_of_keys_does_not_matter():
    turned = dict(reversed(PROPOSAL.items()))
    assert list(turned) != list(PROPOSAL)
    assert proposal_hash(turned) == proposal_hash(PROPOSAL)


def test_a_proposal_read_back_from_json_is_the_same():
    read_back = json.loads(json.dumps({**PROPOSAL, "action": Action.open, "evidence": ("x", "y")}))
    assert proposal_hash(read_back) == proposal_hash({**PROPOSAL, "action": Action.open, "evidence": ("x", "y")})


@pytest.mark.parametrize(
    "changed",
    [
        {"action": "close"},
        {"target": {"kind": "door", "id": "A-2"}},
        {"evidence": ["y", "x"]},
        {"evidence": ["x,y"]},
        {"n": "1"},
        {"n": None},
        {"extra": None},
    ],
)
def test_another_proposal_has_another_hash(changed):
    assert proposal_hash({**PROPOSAL, **changed}) != proposal_hash(PROPOSAL)


def test_the_hash_of_a_proposal_does_not_change_between_releases():
    # Open approvals carry it: a release that computed it differently would refuse them all.
    assert canonical_json({"b": [1, True, None], "a": "é\n"}) == '{"a":"é\\n","b":[1,true,null]}'
    assert proposal_hash({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@pytest.mark.parametrize("value", [0.5, float("nan"), datetime.now(UTC), b"x", {1: "x"}, {"deep": [{"x": object()}]}])
def test_values_that_json_or_a_database_may_change_are_refused(value):
    with pytest.raises(TypeError):
        proposal_hash({"value": value})
