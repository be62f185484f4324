"""No record that a broker accepts stops a claim, a run of one message, a replay or a check."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.wire import ProduceRefused, RawRecord, produce
from include.streams.kafka import tasks
from include.streams.kafka.consumers import Shape
from include.streams.kafka.watch import check_consumer
from tests.integration.kafka.conftest import numbers, open_claims, order, read_all
from tests.integration.kafka.test_handling import outcomes
from tests.integration.kafka.test_replay import declare, renamed, replayed

pytestmark = pytest.mark.integration

NOT_LEADER = 6
NAME = ((b"\xff\xfe", b"1"), (b"trace", b"2"))
ODD_HEADERS = ((b"", b"1"), (b"none", None), (b"n", b""), (b"n", b"\0\0"), ("größe".encode(), b"\xff"))
# Timestamps in microseconds and nanoseconds, in the year 0, and the limits of the field.
ODD_TIMES = [1_764_140_000_000_000, 1_764_140_000_000_000_000, -62_167_219_200_000, -(2**63), 2**63 - 1, -1, -2, 0]


@pytest.fixture
def odd_topic(make_topic):
    """A topic that accepts any timestamp; since Kafka 4.0, a broker refuses future timestamps by default.

    It has no retention, because retention uses these timestamps.
    """
    return make_topic(partitions=1, config={"message.timestamp.after.max.ms": str(2**63 - 1), "retention.ms": "-1"})


@pytest.fixture
def send_raw(services):
    def send(topic, *records: RawRecord) -> list[int]:
        broker = services.endpoints()["kafka"]["bootstrap_servers"]
        offsets = []
        while len(offsets) < len(records):
            try:
                offsets.append(produce(broker, topic.name, 0, records[len(offsets)]))
            except ProduceRefused as refusal:
                # Errors of a topic that was created just now.
                if refusal.code != NOT_LEADER:
                    raise
        return offsets

    return send


def odd(value, *, times=ODD_TIMES) -> list[RawRecord]:
    """Send the order with this number, in records with odd headers and timestamps."""
    now = 1_764_140_000_000
    records = [RawRecord(b"k", value(0), NAME, now), RawRecord(b"k", value(1), ODD_HEADERS, now)]
    return records + [RawRecord(b"k", value(number), (), time) for number, time in enumerate(times, start=2)]


def test_odd_records_with_valid_payloads_are_handled(odd_topic, make_consumer, send, send_raw):
    consumer = make_consumer(odd_topic)
    send(odd_topic, order("before"))
    records = odd(order)
    send_raw(odd_topic, *records)
    send(odd_topic, order("behind"))
    check_consumer(consumer)
    assert tasks.claim_messages(consumer, "run") == []
    assert numbers(odd_topic) == ["before", *(str(n) for n in range(len(records))), "behind"]
    assert open_claims(consumer) == 0
    assert read_all(odd_topic.dead_letter_name) == []


def test_an_odd_record_that_waits_stops_no_check(odd_topic, make_consumer, send_raw):
    consumer = make_consumer(odd_topic)
    send_raw(odd_topic, RawRecord(None, order(1), NAME, ODD_TIMES[0]))
    assert check_consumer(consumer).behind == {odd_topic.name: 1}


def test_odd_records_become_dead_letters_with_their_readable_parts(odd_topic, make_consumer, send_raw):
    consumer = make_consumer(odd_topic)
    send_raw(odd_topic, *odd(lambda n: f"bad {n}".encode()))
    tasks.claim_messages(consumer, "run")
    by_name, by_headers, *by_time = read_all(odd_topic.dead_letter_name)
    assert len(by_time) == len(ODD_TIMES)
    assert dict(by_name.headers())["dlq.unreadable"] == b"headers: the name of one is not UTF-8"
    assert [(name.encode(), value) for name, value in by_headers.headers()[: len(ODD_HEADERS)]] == list(ODD_HEADERS)
    assert "dlq.unreadable" not in dict(by_headers.headers())
    for time, letter in zip(ODD_TIMES[:5], by_time, strict=False):
        headers = dict(letter.headers())
        assert headers["dlq.timestamp"] == f"{time} ms".encode()
        assert str(time).encode() in headers["dlq.unreadable"]
    assert open_claims(consumer) == 0


def test_runs_of_single_messages_handle_odd_records(odd_topic, make_consumer, send_raw):
    consumer = make_consumer(odd_topic, shape=Shape.per_message)
    records = odd(order)
    send_raw(odd_topic, *records)
    keys = tasks.claim_partition_keys(consumer, "fan out")
    assert len(keys) == len(records)
    assert tasks.read_message(consumer, keys[0]).unreadable
    assert tasks.read_message(consumer, keys[2]).timestamp_ms == ODD_TIMES[0]
    for key in keys[:3]:
        tasks.handle_message(consumer, key, key)
    assert numbers(odd_topic) == ["0", "1", "2"]


def test_a_replay_sends_odd_records_with_their_readable_parts(odd_topic, make_consumer, send_raw):
    topic = declare(odd_topic)
    consumer = make_consumer(topic)
    records = odd(renamed)
    send_raw(topic, *records)
    tasks.claim_messages(consumer, "run")
    assert numbers(topic) == []
    assert replayed(topic) == {"replayed": len(records)}
    back = read_all(topic.name)[len(records) :]
    assert [(n.encode(), v) for n, v in back[1].headers()[: len(ODD_HEADERS)]] == list(ODD_HEADERS)
    tasks.claim_messages(consumer, "second")
    assert sorted(numbers(topic)) == sorted(str(n) for n in range(len(records)))


raw_records = st.builds(
    RawRecord,
    key=st.none() | st.binary(max_size=5),
    value=st.none() | st.binary(max_size=20) | st.integers(0, 10**9).map(order),
    headers=st.lists(st.tuples(st.binary(max_size=4), st.none() | st.binary(max_size=4)), max_size=3).map(tuple),
    timestamp=st.integers(-(2**63), 2**63 - 1),
)


def test_records_of_any_content_are_all_settled(odd_topic, make_consumer, send_raw):
    consumer = make_consumer(odd_topic)
    sent = 0

    @settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(raw_records, min_size=20, max_size=40))
    def world(records):
        nonlocal sent
        send_raw(odd_topic, *records)
        sent += len(records)
        tasks.claim_messages(consumer, f"run {sent}")
        assert open_claims(consumer) == 0
        assert sum(outcomes(consumer).values()) == sent

    world()
