"""From a message on alerts.raised to the tile of the live board, for valid and invalid messages."""

from __future__ import annotations

import json

import pytest

from include.streams.contracts.breaking import broken
from include.water.dashboards.events import ELSEWHERE, named_tiles, tile_of
from include.water.topics import ALERTS_RAISED, AlertRaised
from tests.unit.water.test_topics import example

ALL = {"tile": None}


class Message:
    """A message like confluent-kafka's, as the stock trigger gets it."""

    def __init__(self, value: bytes | None) -> None:
        self._value = value

    def value(self) -> bytes | None:
        return self._value


def raised(**changes) -> AlertRaised:
    event = example(AlertRaised, **changes)
    assert isinstance(event, AlertRaised)
    return event


def message(event: AlertRaised) -> Message:
    return Message(ALERTS_RAISED.serialize(event)[1])


def test_a_message_names_the_tile_of_its_district_and_its_alert():
    payload = tile_of(message(raised(district_id="harbour", alert_id="leak:1")))
    assert payload == {"tile": "harbour", "alert_id": "leak:1"}


@pytest.mark.parametrize("district", [None, "atlantis"])
def test_an_unknown_district_is_shown_elsewhere(district):
    assert tile_of(message(raised(district_id=district)))["tile"] == ELSEWHERE


def test_the_payload_contains_no_text_of_a_person():
    payload = tile_of(message(raised(title="<img src=x onerror=alert(1)> call me: 555 0100")))
    assert set(payload) == {"tile", "alert_id"}


@pytest.mark.parametrize(
    "value", [None, b"", b"\xff\x00", b"{}", b"[" * 100_000, *broken(ALERTS_RAISED, raised()).values()]
)
def test_an_invalid_message_refreshes_all_tiles_and_never_raises(value):
    assert tile_of(Message(value)) == ALL


def test_every_payload_starts_a_run_and_can_be_stored():
    # The stock trigger skips a message for which the function returns None.
    for payload in (tile_of(message(raised())), tile_of(Message(None))):
        assert payload
        assert json.loads(json.dumps(payload)) == payload


def test_the_tiles_of_all_events_of_a_run_are_refreshed():
    payloads = [tile_of(message(raised(district_id=district))) for district in ("harbour", "valley", "harbour", None)]
    assert named_tiles(payloads) == {"harbour", "valley", ELSEWHERE}


@pytest.mark.parametrize(
    "payloads",
    [
        [],
        [ALL],
        [{"tile": "harbour"}, ALL],
        [{"tile": "harbour"}, None],
        [{"tile": "atlantis"}],
        [{"tile": ["harbour"]}],
        [{}],
        ["harbour"],
    ],
)
def test_a_payload_without_a_tile_means_all_tiles(payloads):
    assert named_tiles(payloads) is None
