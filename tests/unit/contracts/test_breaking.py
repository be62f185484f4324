"""Messages that are built to be invalid are rejected for the reason for which they are built."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

import pytest
from pydantic import Field

from include.streams.contracts import Contract, ContractViolation, Reason, Topic
from include.streams.contracts.breaking import broken
from tests.unit.contracts.orders import ORDERS, order


class Counted(Contract):
    version: Literal[1]
    number: Annotated[int, Field(ge=0, le=9)]

    @property
    def event_id(self) -> str:
        return str(self.number)


COUNTED = Topic("counted", Counted, key="number", partitions=1, retention=timedelta(days=1))


@pytest.mark.parametrize(("topic", "event"), [(ORDERS, order()), (COUNTED, Counted(version=1, number=3))])
def test_each_built_message_is_rejected_for_its_reason(topic: Topic, event: Contract):
    messages = broken(topic, event)
    # A conflict needs two messages, a rejection an effect, and the reasons of formats a schema registry.
    of_formats = {Reason.no_schema_id, Reason.unknown_schema, Reason.foreign_schema, Reason.not_decodable}
    assert set(messages) == set(Reason) - {Reason.conflict, Reason.rejected} - of_formats
    for reason, value in messages.items():
        with pytest.raises(ContractViolation) as caught:
            topic.parse(value)
        assert caught.value.reason is reason


def test_the_broker_accepts_the_size_of_each_built_message():
    limit = int(ORDERS.kafka_config()["max.message.bytes"])
    assert all(len(value or b"") < limit for value in broken(ORDERS, order()).values())
