"""Other packages of the image, imported in the process that handles messages."""

import pytest

from include.streams.kafka import tasks
from tests.integration.kafka.conftest import numbers, order

pytestmark = pytest.mark.integration


def test_bigquerys_functions_in_sqlalchemy_stop_no_message(make_topic, make_consumer, send):
    pytest.importorskip("sqlalchemy_bigquery", reason="it comes with the Google provider")
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("a"), order("b"))
    assert tasks.claim_messages(consumer, "run") == []
    assert sorted(numbers(topic)) == ["a", "b"]
