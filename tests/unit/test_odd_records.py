"""The odd records of `make faults`: good records keep the contract, the others break it."""

import pytest

from benchmarks.consumers import FAULTS_TOPICS
from benchmarks.odd_records import KINDS
from include.streams.contracts import ContractViolation

TOPIC = FAULTS_TOPICS[0]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.is_good], ids=lambda kind: kind.name)
def test_a_good_odd_record_keeps_its_contract(kind):
    assert TOPIC.parse(kind.make("odd-1").value).event_id == "odd-1"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.is_good], ids=lambda kind: kind.name)
def test_a_bad_odd_record_breaks_its_contract(kind):
    if kind.name == "zero character":
        # Only the database refuses this value.
        assert "\0" in TOPIC.parse(kind.make("odd-1").value).event_id
        return
    with pytest.raises(ContractViolation):
        TOPIC.parse(kind.make("odd-1").value)
