"""The comparison is fair to the rival and prints what it measured."""

import asyncio

import pytest
from airflow.sdk.module_loading import import_string

shared_stream = pytest.importorskip("benchmarks.shared_stream", reason="benchmarks/ is not in the image")
readme = pytest.importorskip("benchmarks.readme")


def yielded(*values: bytes | None) -> list[str]:
    async def stream():
        for value in values:
            yield value

    async def collect():
        return [event.payload async for event in shared_stream.probe_stream().filter_shared_stream(stream())]

    return asyncio.run(collect())


def test_the_rival_goes_on_behind_a_message_that_breaks_its_contract():
    good = b'{"version":1,"number":"a"}'
    assert yielded(b"not json", None, b'{"version":2,"number":"b"}', good) == [good.decode()]


def test_the_triggerer_can_recreate_the_rival_from_its_row():
    path, arguments = shared_stream.probe_stream().serialize()
    trigger = import_string(path)(**arguments)
    assert trigger.shared_stream_key() == shared_stream.probe_stream().shared_stream_key()
    assert trigger.dlq_topic == "bench.shared-stream.dlq"


def test_each_row_of_the_table_has_a_cell_for_each_lane():
    lanes = ("ours", "per message", "stock", "shared stream", "floor", "alerts", "plain", "ours, listener")
    result = {
        "burst_per_second": dict.fromkeys(lanes, 1234.5),
        "single_p50_seconds": dict.fromkeys(lanes, 0.456),
        "burst_size": 1000,
        "sustained_messages": 100_000,
        "sustained_per_s": 600.0,
        "sustained_with_receiver_per_s": 55.5,
        "sustained_plain_consumer_per_s": 999.9,
        **{f"{lane}_{what}": 7 for lane in ("stock", "shared_stream") for what in ("lost", "joined")},
    }
    table, variants = readme.table(result).split("\n\n", 1)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert {len(row) for row in rows} == {5}
    cells = {row[0]: row[1:] for row in rows}
    assert cells["messages a second in a burst of 1,000"][1] == "1,234"
    assert cells["100,000 at once, a second"][2:] == ["`raise_alerts` 600; with the webhook's receiver 56", "1,000"]
    assert cells["messages that arrive together"][1] == "7 joined into one run or left for the next, 7 seen by no run"
    assert "ours, listener: 0.46 s" in variants


def test_a_lane_that_was_not_measured_leaves_its_cell_empty():
    nothing = {f"{lane}_{what}": 0 for lane in ("stock", "shared_stream") for what in ("lost", "joined")}
    table = readme.table({"burst_per_second": {}, "single_p50_seconds": {}, "burst_size": 10, **nothing})
    assert "None" not in table
    assert "nan" not in table
