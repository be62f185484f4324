"""The comparison with the provider's shared stream is fair."""

import asyncio

import pytest
from airflow.sdk.module_loading import import_string

shared_stream = pytest.importorskip("benchmarks.shared_stream", reason="benchmarks/ is not in the image")


def yielded(*values: bytes | None) -> list[str]:
    async def stream():
        for value in values:
            yield value

    async def collect():
        return [event.payload async for event in shared_stream.probe_stream().filter_shared_stream(stream())]

    return asyncio.run(collect())


def test_the_shared_stream_continues_after_an_invalid_message():
    good = b'{"version":1,"number":"a"}'
    assert yielded(b"not json", None, b'{"version":2,"number":"b"}', good) == [good.decode()]


def test_the_triggerer_can_recreate_the_shared_stream_from_its_row():
    path, arguments = shared_stream.probe_stream().serialize()
    trigger = import_string(path)(**arguments)
    assert trigger.shared_stream_key() == shared_stream.probe_stream().shared_stream_key()
    assert trigger.dlq_topic == "bench.shared-stream.dlq"
