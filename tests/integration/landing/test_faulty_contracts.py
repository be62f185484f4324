"""A contract whose own code fails for a message: the message becomes a dead letter, and the lane continues."""

from __future__ import annotations

from typing import Annotated, ClassVar

import pytest
from pydantic import AfterValidator, Field

from tests.integration.kafka.conftest import read_all
from tests.integration.landing.test_run import Sale, clean_rows, consumer, counts, land, run, sale, sales

pytestmark = pytest.mark.integration
__all__ = ["consumer", "sales"]


def _odd(note: str | None) -> object:
    return 7 if note == "odd" else note


class Faulty(Sale):
    """A contract whose own code fails for some messages."""

    note: Annotated[str, Field(max_length=20), AfterValidator(_odd)] | None = None

    event_id_sql: ClassVar[str | None] = None

    @property
    def event_id(self) -> str:
        if self.number == "raises":
            raise KeyError(self.number)
        if self.number == "half":
            return "\ud800"
        return 5 if self.number == "integer" else self.number  # type: ignore[return-value]


def test_a_contract_that_fails_for_one_message_delays_no_other(consumer, send, sales):
    lane = consumer(sales(Faulty))
    values = [sale("raises"), sale(1), sale("half"), sale("integer"), sale(2, note="odd"), sale(3)]
    send(lane.topic, *values)
    land(lane.topic, 0, 0, *values)
    assert counts(run(lane)) == {"landed": 6, "clean": 2, "dead_lettered": 4, "duplicates": 0, "without_record": 0}
    assert clean_rows(lane.topic) == [(0, 1, "1"), (0, 5, "3")]
    found = [dict(record.headers()) for record in read_all(lane.topic.dead_letter_name)]
    assert {headers["dlq.reason"] for headers in found} == {b"rejected"}
    assert b"KeyError" in found[0]["dlq.detail"]
