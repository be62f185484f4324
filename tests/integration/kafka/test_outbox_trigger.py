"""Rows that are due start the Dag `deliver_outbox`; rows that wait do not."""

import asyncio

import pytest
from airflow.triggers.base import BaseEventTrigger
from sqlalchemy import text

from include.streams.kafka.delivery_trigger import OutboxDueTrigger, outbox_watcher
from include.streams.operations import outbox
from include.streams.operations.database import begin

pytestmark = pytest.mark.integration


def test_a_due_row_fires_and_a_route_that_waits_does_not(make_topic, make_consumer):
    consumer = make_consumer(make_topic())
    with begin() as connection:
        connection.execute(text("update outbox set state = 'skipped' where state = 'pending'"))

    async def first_event(seconds: float) -> bool:
        path, arguments = OutboxDueTrigger(interval=0.1).serialize()
        assert path == "include.streams.kafka.delivery_trigger.OutboxDueTrigger"
        events = OutboxDueTrigger(**arguments).run()
        try:
            await asyncio.wait_for(anext(events), seconds)
        except TimeoutError:
            return False
        return True

    assert not asyncio.run(first_event(1))
    with begin() as connection:
        outbox.add_request(connection, consumer=consumer.name, conn_id="anywhere", payload={})
    assert asyncio.run(first_event(20))
    with begin() as connection:
        wait = text("insert into outbox_routes values (:name, 'request', 'anywhere', 1, now() + interval '1 minute')")
        connection.execute(wait, {"name": consumer.name})
    assert not asyncio.run(first_event(1))
    assert isinstance(outbox_watcher().trigger, BaseEventTrigger)
