"""The fast path in SQL reads the messages of the example as their contracts do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.streams.contracts import Topic
from include.water.topics import METER_READINGS, SERVICE_REQUESTS
from tests.unit.validators import test_rows as fast_path

GOOD: dict[Topic, dict[str, Any]] = {
    METER_READINGS: {
        "version": 1,
        "meter_id": "M-000001",
        "district_id": "harbour",
        "read_at": "2026-01-02T03:04:05Z",
        "litres_total": 5,
        "battery_percent": 50,
    },
    SERVICE_REQUESTS: {
        "version": 1,
        "request_id": "SR-12345678",
        "received_at": "2026-01-02T03:04:05.5+02:00",
        "channel": "app",
        "customer_id": "C-123456",
        "district_id": None,
        "address": "Main St. 5",
        "site_id": None,
        "subject": "no water",
        "text": "two\nlines, é and \u2028",
    },
}
NEAR = [
    *fast_path.NEAR,
    '"M-000001"',
    '"M-00000"',
    '"harbour"',
    '"Harbour"',
    '"app"',
    '"App"',
    '"C-123456"',
    '"SR-12345678"',
]


@pytest.mark.parametrize("topic", GOOD, ids=lambda topic: topic.name)
def test_the_screen_judges_nearly_valid_values_like_the_contract(topic: Topic):
    good = GOOD[topic]
    documents = [
        [(n, value if n == name else json.dumps(v)) for n, v in good.items()] for name in good for value in NEAR
    ]
    texts: list[str | None] = ["{" + ",".join(f'"{n}":{v}' for n, v in members) + "}" for members in documents]
    fast_path.assert_same_as_parsed(topic, texts)


@given(st.data(), st.sampled_from(list(GOOD)))
@settings(max_examples=50, deadline=None)
def test_texts_of_the_fast_path_are_accepted_by_the_parser_with_equal_values(data: st.DataObject, topic: Topic):
    texts = data.draw(st.lists(fast_path.texts(GOOD[topic]), min_size=10, max_size=30))
    fast_path.assert_same_as_parsed(topic, texts)


@pytest.mark.parametrize("topic", GOOD, ids=lambda topic: topic.name)
def test_usual_messages_do_not_need_the_parser(topic: Topic):
    assert fast_path.assert_same_as_parsed(topic, [json.dumps(GOOD[topic])]) == [True]
