"""Records written byte by byte arrive unchanged: the broker refuses a wrong checksum or length."""

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks import wire

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def client_config(services):
    return services.endpoints()["kafka"]["client_config"]


@pytest.fixture(scope="module")
def topic(client_config) -> str:
    # Since Kafka 4.0 a broker refuses times more than an hour ahead, unless the topic allows them.
    allowed = {"message.timestamp.after.max.ms": str(2**63 - 1)}
    admin = AdminClient(client_config)
    admin.create_topics([NewTopic("wire.records", 1, config=allowed)])["wire.records"].result()
    return "wire.records"


def read(client_config, topic: str, offset: int):
    reader = Consumer({**client_config, "group.id": "wire"})
    reader.assign([TopicPartition(topic, 0, offset)])
    try:
        return reader.poll(20)
    finally:
        reader.close()


def produce(client_config, topic: str, record: wire.RawRecord) -> int:
    return wire.produce(client_config["bootstrap.servers"], topic, 0, record)


def test_a_raw_record_arrives_with_key_value_headers_and_time(client_config, topic):
    headers = ((b"a", b"1"), (b"a", None), (b"", b"\0\0"))
    offset = produce(client_config, topic, wire.RawRecord(b"\xffkey", b"v" * 300, headers, timestamp=1_700_000_000_123))
    record = read(client_config, topic, offset)
    assert (record.key(), record.value()) == (b"\xffkey", b"v" * 300)
    assert record.headers() == [("a", b"1"), ("a", None), ("", b"\0\0")]
    assert record.timestamp()[1] == 1_700_000_000_123


@pytest.mark.parametrize("timestamp", [1_700_000_000_123_456, 1_700_000_000_123_456_789, -2, -62_135_596_800_001])
def test_a_raw_record_may_have_any_number_as_its_time(client_config, topic, timestamp):
    offset = produce(client_config, topic, wire.RawRecord(None, b"v", timestamp=timestamp))
    assert read(client_config, topic, offset).timestamp()[1] == timestamp


def test_a_raw_record_may_have_a_header_name_that_is_no_utf8(client_config, topic):
    offset = produce(client_config, topic, wire.RawRecord(None, None, ((b"\xff\xfe", b"x"),)))
    with pytest.raises((SystemError, UnicodeDecodeError)):
        read(client_config, topic, offset).headers()


def test_a_compressed_record_may_exceed_the_topics_limit(client_config, topic):
    value = b"x" * 3_000_000
    offset = produce(client_config, topic, wire.RawRecord(None, value, gzipped=True))
    assert read(client_config, topic, offset).value() == value


def test_a_refused_batch_raises_the_brokers_error_code(client_config):
    with pytest.raises(wire.ProduceRefused, match="3"):
        wire.produce(client_config["bootstrap.servers"], "no.such.topic", 0, wire.RawRecord(None, b"v"))
