"""A transaction that does not end blocks the landing of its partition: an alarm of the connector names it."""

from __future__ import annotations

import pytest

from include.streams.landing import connectors, watchdog
from include.streams.landing.tables import connector_name
from tests.integration.connect.conftest import alarms, expected, landed_records, rows, send, wait_for
from tests.integration.kafka.test_open_transactions import an_hour_ago, transaction

pytestmark = pytest.mark.integration
__all__ = ["transaction"]


def test_an_open_transaction_on_a_landed_topic_is_named_until_it_ends(make_topic, folder, connect, transaction):
    topic = make_topic(partitions=2)
    name = connector_name(topic)
    connectors.apply([topic], folder=folder)
    sent = send(topic, [b"0", b"1"])
    producer = transaction(topic)
    # The first record is after the transaction's beginning, the second record is in the other partition.
    sent |= send(topic, [b"held up", b"elsewhere"])
    wait_for(lambda: landed_records(topic) == 3)
    watchdog.check_connectors([topic])
    assert alarms(name) == {}, "it may end by itself"
    an_hour_ago(name)
    for _ in range(2):
        watchdog.check_connectors([topic])
    message = alarms(name)["transaction_open"]
    assert f"{topic.name}-0 at offset 1 since" in message
    assert "with 2 offsets behind it" in message
    assert landed_records(topic) == 3

    producer.abort_transaction(30)
    wait_for(lambda: landed_records(topic) == 4)
    watchdog.check_connectors([topic])
    assert alarms(name) == {}
    assert rows(topic) == expected(topic, sent)
