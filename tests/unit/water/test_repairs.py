"""The example's repairs, on messages as the sources sent them."""

from __future__ import annotations

import json

import pytest

from include.streams.contracts import ContractViolation, Reason, Topic
from include.water.feeds.seismic import to_event
from include.water.repairs import REPAIRS
from include.water.topics import SEISMIC_EVENTS, SERVICE_REQUESTS, TOPICS, ServiceRequest
from tests.unit.water.test_seismic_feed import feature
from tests.unit.water.test_topics import example


def request(**changes: object) -> bytes:
    """A request as the app before 4.3 sent it."""
    document = json.loads(SERVICE_REQUESTS.serialize(example(ServiceRequest))[1])
    document["message"], document["title"] = document.pop("text"), document.pop("subject")
    return json.dumps({**document, **changes}).encode()


def test_a_request_of_the_old_app_is_repaired_to_the_new_form():
    repaired = REPAIRS.apply(SERVICE_REQUESTS, request())
    assert repaired.event == example(ServiceRequest)
    assert repaired.event.event_id == example(ServiceRequest).event_id
    assert len(repaired.repairs) == 1


def test_other_errors_of_an_old_request_stay_errors():
    with pytest.raises(ContractViolation) as error:
        REPAIRS.apply(SERVICE_REQUESTS, request(channel="fax"))
    assert error.value.reason is Reason.out_of_bounds


def test_a_feature_that_the_adapter_reads_now_becomes_its_event():
    value = json.dumps(feature(), sort_keys=True).encode()
    repaired = REPAIRS.apply(SEISMIC_EVENTS, value)
    assert repaired.event == to_event(feature())
    assert (repaired.value, repaired.repairs) == (SEISMIC_EVENTS.serialize(repaired.event)[1], ("adapted_again",))


def test_a_feature_that_is_still_invalid_keeps_the_adapters_reason():
    broken = feature()
    broken["properties"]["mag"] = "strong"
    with pytest.raises(ContractViolation) as error:
        REPAIRS.apply(SEISMIC_EVENTS, json.dumps(broken).encode())
    assert (error.value.reason, error.value.detail) == (Reason.wrong_type, "magnitude (float_type)")


@pytest.mark.parametrize("topic", list(TOPICS), ids=lambda topic: topic.name)
def test_no_repair_changes_a_valid_message(topic: Topic):
    _, value = topic.serialize(example(topic.contract))
    assert REPAIRS.apply(topic, value).repairs == ()
    assert [name for name, repair in REPAIRS.of(topic).items() if repair(value) is not None] == []
