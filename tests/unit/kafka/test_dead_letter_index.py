"""Dead letters of Kafka Connect, Kafka Streams and Spring are listed with their reason and coordinates."""

from __future__ import annotations

from include.streams.kafka.dead_letter_index import UNNAMED, foreign


def test_headers_of_kafka_connect():
    headers = {
        "__connect.errors.topic": b"orders",
        "__connect.errors.partition": b"2",
        "__connect.errors.offset": b"17",
        "__connect.errors.connector.name": b"orders-sink",
        "__connect.errors.stage": b"VALUE_CONVERTER",
        "__connect.errors.exception.class.name": b"org.apache.kafka.connect.errors.DataException",
        "__connect.errors.exception.message": b"a customer's name",
    }
    row = foreign(headers)
    assert row == {
        "writer": "connect",
        "reason": "DataException",
        "detail": "stage VALUE_CONVERTER",
        "consumer": "orders-sink",
        "source_partition": 2,
        "source_offset": 17,
    }


def test_headers_of_kafka_streams():
    headers = {
        "__streams.errors.exception": b"org.apache.kafka.common.errors.SerializationException",
        "__streams.errors.topic": b"orders",
        "__streams.errors.partition": b"1",
        "__streams.errors.offset": b"5",
    }
    row = foreign(headers)
    assert (row["writer"], row["reason"]) == ("kafka_streams", "SerializationException")
    assert (row["source_partition"], row["source_offset"]) == (1, 5)


def test_headers_of_spring_have_big_endian_numbers():
    headers = {
        "kafka_dlt-exception-fqcn": b"org.springframework.kafka.listener.ListenerExecutionFailedException",
        "kafka_dlt-exception-cause-fqcn": b"java.lang.IllegalStateException",
        "kafka_dlt-original-partition": (3).to_bytes(4, "big"),
        "kafka_dlt-original-offset": (70_000).to_bytes(8, "big"),
        "kafka_dlt-original-consumer-group": b"billing",
    }
    row = foreign(headers)
    assert (row["writer"], row["reason"], row["consumer"]) == ("spring", "IllegalStateException", "billing")
    assert (row["source_partition"], row["source_offset"]) == (3, 70_000)


def test_odd_headers_are_no_error():
    headers = {
        "__connect.errors.topic": None,
        "__connect.errors.partition": b"-1x",
        "__connect.errors.offset": "\u0661".encode(),
        "__connect.errors.exception.class.name": b"",
        "__connect.errors.stage": b"\xff\x00\n",
    }
    row = foreign(headers)
    assert (row["reason"], row["source_partition"], row["source_offset"]) == (UNNAMED, None, None)
    assert row["detail"].isprintable()
    assert foreign({})["writer"] == "other"
