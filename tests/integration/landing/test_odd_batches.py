"""Batches of mostly bad messages or odd record times: good rows are processed, and alarms report the others."""

from __future__ import annotations

import pytest

from include.streams.landing.tables import load_landing_table
from tests.integration.kafka.conftest import open_claims
from tests.integration.landing.conftest import alarms_of
from tests.integration.landing.test_run import clean_rows, consumer, counts, land, run, sale, sales

pytestmark = pytest.mark.integration
__all__ = ["consumer", "sales"]

MICROSECONDS_AS_MILLISECONDS = 1_795_675_261_576_000 * 1_000
YEAR_ZERO = -62_167_219_200_001 * 1_000


def test_bad_messages_stop_no_good_row_and_an_alarm_names_share_and_reason(consumer, send):
    lane = consumer()
    values = [*(b"\0\0\0\0\x07junk" for _ in range(200)), sale(1, amount=-1), sale(2), sale(3)]
    send(lane.topic, *values)
    land(lane.topic, 0, 0, *values)
    found = counts(run(lane))
    assert found == {"landed": 203, "clean": 2, "dead_lettered": 201, "duplicates": 0, "without_record": 0}
    assert open_claims(lane) == 0
    text, is_open = alarms_of(lane.name)["many_dead_letters"]
    assert is_open
    assert "201 of the 203 messages" in text
    assert "200 of them with not_json" in text
    assert "200 begin like messages of a schema registry" in text
    assert lane.topic.dead_letter_name in text

    # A few messages say nothing about the producer; a whole batch of good ones does.
    for number, size in ((2, 5), (3, 100)):
        first = 203 if size == 5 else 208
        good = [sale(first + n) for n in range(size)]
        send(lane.topic, *good)
        land(lane.topic, 0, first, *good)
        run(lane, f"run-{number}")
        assert alarms_of(lane.name)["many_dead_letters"][1] is (size == 5)


@pytest.mark.parametrize("microseconds", [MICROSECONDS_AS_MILLISECONDS, YEAR_ZERO])
def test_record_times_outside_the_calendar_stop_no_row(consumer, send, microseconds):
    import pyarrow as pa

    lane = consumer()
    # Good in the fast path, good only in the parser, and bad.
    values = [sale(1), sale(2).replace(b"{", b"{ ", 1), sale(3, amount=-1)]
    send(lane.topic, *values)
    columns = {
        "topic": [lane.topic.name] * 3,
        "partition": pa.array([0] * 3, pa.int32()),
        "offset": pa.array(range(3), pa.int64()),
        "timestamp": pa.array([microseconds] * 3, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        "value": [value.decode() for value in values],
    }
    load_landing_table(lane.topic).append(pa.table(columns))
    assert counts(run(lane))["clean"] == 2
    assert clean_rows(lane.topic) == [(0, 0, "1"), (0, 1, "2")]
