"""A broker with SCRAM and TLS: one Airflow connection works for all clients, and a wrong password loses nothing."""

from __future__ import annotations

import asyncio
import json
import shlex
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.apache.kafka.operators.produce import ProduceToTopicOperator
from airflow.sdk.exceptions import AirflowFailException
from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from sqlalchemy import text

from include.streams.contracts import Topic
from include.streams.kafka import tasks
from include.streams.kafka.__main__ import main
from include.streams.kafka.consumers import Consumer
from include.streams.kafka.producer import AcknowledgedProducer, DeliveryFailed
from include.streams.kafka.topics import create_topics
from include.streams.kafka.trigger import ConsumerLagTrigger, lag_watcher
from include.streams.kafka.watch import check_consumer, check_consumers
from include.streams.operations import outbox
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_alarm
from include.streams.operations.database import begin
from tests.clients import producer_to, reader_at
from tests.conftest import start_stack
from tests.integration.kafka.conftest import Order, alarms, deliver_now, numbers, open_claims, order
from tests.integration.kafka.test_trigger import Firings, tries, until_failed

__all__ = ["tries"]

pytestmark = pytest.mark.integration

CONN_ID = "kafka_secure"
REFUSED = f"connection {CONN_ID}: .*SASL authentication error: .*invalid credentials"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The settings of a client of the secured broker."""
    stack = start_stack(tmp_path_factory.mktemp("secure"), ("kafka",), kafka_security="sasl_ssl")
    config = stack.endpoints()["kafka"]["client_config"]
    assert (config["security.protocol"], config["sasl.mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
    yield config
    stack.remove()


Connect = Callable[..., None]


@pytest.fixture
def connect(config, monkeypatch) -> Connect:
    """Define the Airflow connection, with changed settings."""

    def declare(changes: dict[str, Any]) -> None:
        connection = {"conn_type": "kafka", "extra": {**config, **changes}}
        monkeypatch.setenv(f"AIRFLOW_CONN_{CONN_ID.upper()}", json.dumps(connection))

    return declare


@pytest.fixture(autouse=True)
def connection(connect, operations, monkeypatch) -> None:
    """A connection to the secured broker. A client that used the default connection would reach no broker."""
    connect({})
    nowhere = {"conn_type": "kafka", "extra": {"bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 2000}}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps(nowhere))


@pytest.fixture
def topics() -> tuple[Topic, Topic]:
    """Topics for input and results, created through the connection."""
    name = f"orders.{uuid.uuid4().hex[:8]}"
    made = [Topic(n, Order, key="number", partitions=1, retention=timedelta(days=1)) for n in (name, f"{name}.results")]
    changes = create_topics(made, CONN_ID)
    assert len(changes) == 4
    return made[0], made[1]


@pytest.fixture
def consumer(topics) -> Consumer:
    return Consumer(
        name=f"consumer-{uuid.uuid4().hex[:8]}",
        topics=(topics[0],),
        effect="tests.integration.kafka.conftest:record_effect",
        conn_id=CONN_ID,
        max_messages_per_claim=100,
        chunk_size=2,
    )


@pytest.fixture
def send(config, topics) -> Callable[..., None]:
    """Produce as another client."""

    def produce(*values: bytes) -> None:
        producer = producer_to({**config, "acks": "all"}, topics[0].name)
        for value in values:
            producer.produce(topics[0].name, value)
        assert producer.flush(20) == 0

    return produce


@pytest.fixture
def records(config) -> Callable[[str], list]:
    """All records of a topic with one partition, read by another client."""

    def read(name: str) -> list:
        reader = reader_at({**config, "enable.partition.eof": True}, TopicPartition(name, 0, 0))
        read = []
        while (record := reader.poll(20)) is not None and record.error() is None:
            read.append(record)
        reader.close()
        return read

    return read


@pytest.fixture
def committed(config, consumer, topics) -> Callable[[], int]:
    """The committed offset of the consumer's group, requested by another client; below 0 if there is none."""

    def ask() -> int:
        reader = KafkaConsumer({**config, "group.id": consumer.group})
        (partition,) = reader.committed([TopicPartition(topics[0].name, 0)], timeout=20)
        reader.close()
        return partition.offset

    return ask


def trigger_of(consumer: Consumer) -> ConsumerLagTrigger:
    """The trigger as the triggerer recreates it from its serialized form."""
    return ConsumerLagTrigger(**lag_watcher(consumer).trigger.serialize()[1])


def messages(*values: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"key", value) for value in values]


def produce_with_the_operator(topic: str, *values: bytes) -> None:
    ProduceToTopicOperator(
        task_id="produce",
        kafka_config_id=CONN_ID,
        topic=topic,
        producer_function=messages,
        producer_function_args=values,
        delivery_callback="include.streams.kafka.producer.raise_on_delivery_failure",
        synchronous=False,
    ).execute({})


def outbox_states(consumer: Consumer) -> list[str]:
    with begin() as connection:
        query = text("select state from outbox where consumer = :name order by sequence")
        return list(connection.scalars(query, {"name": consumer.name}))


def test_every_client_works_with_one_connection(topics, consumer, send, records, committed):
    orders, results = topics
    with begin() as connection:
        event = Order(version=1, number="7", amount=1)
        outbox.add_message(connection, consumer=consumer.name, topic=results, event=event)
    produce_with_the_operator(orders.name, order("from the operator"), b"not an order")

    async def fires() -> None:
        async with Firings(trigger_of(consumer)) as firings:
            await firings.until(1)
            assert firings.lags == [2]
            await asyncio.to_thread(send, order(3), order(4))

    asyncio.run(fires())
    # The claiming task commits, reads the first chunk, publishes the dead letter and delivers the outbox; the second
    # chunk is handled by a separate task.
    (chunk,) = tasks.claim_messages(consumer, "run")
    tasks.handle_chunk(consumer, chunk, "run")
    assert numbers(orders) == ["from the operator", "3", "4"]
    assert [letter.value() for letter in records(orders.dead_letter_name)] == [b"not an order"]
    deliver_now(consumer)
    assert [record.key() for record in records(results.name)] == [b"7"]
    assert outbox_states(consumer) == ["delivered"]
    assert committed() == 4
    assert open_claims(consumer) == 0


def test_the_reset_command_of_a_stopped_consumer_reaches_its_broker(topics, consumer, send, config, committed, capsys):
    orders, _ = topics
    send(order(1), order(2), order(3))
    tasks.claim_messages(consumer, "before")
    admin = AdminClient(config)
    admin.delete_topics([orders.name])[orders.name].result(20)
    create_again(orders)
    send(order(4))
    with pytest.raises(AirflowFailException, match="was deleted and recreated"):
        tasks.claim_messages(consumer, "stopped")
    alarm = alarms(consumer)["consumer_stopped"]
    words = shlex.split(alarm[alarm.index("python -m include.streams.kafka ") :])
    assert main(words[3:]) == 0
    assert "starts at offset 0" in capsys.readouterr().out
    assert "consumer_stopped" not in alarms(consumer)
    tasks.claim_messages(consumer, "after")
    assert "4" in numbers(orders)
    assert committed() == 1


def create_again(topic: Topic) -> None:
    """The broker still accepts the old password for a moment."""
    for _ in range(100):
        if any(topic.name in change for change in create_topics([topic], CONN_ID)):
            return
    raise AssertionError(f"{topic.name} was not made again")


@pytest.fixture
def short_timeouts(monkeypatch) -> None:
    for module in ("offsets", "topics", "reading"):
        monkeypatch.setattr(f"include.streams.kafka.{module}.REQUEST_TIMEOUT_SECONDS", 1.0)


WRONG = {"sasl.password": "wrong", "delivery.timeout.ms": 1000}


def test_a_wrong_password_is_named_by_every_client_and_changes_nothing(
    topics, consumer, send, records, committed, connect, short_timeouts, capfd
):
    orders, results = topics
    send(order(1), order(2), order(3), b"bad")
    (chunk,) = tasks.claim_messages(consumer, "before")
    with begin() as connection:
        event = Order(version=1, number="7", amount=1)
        outbox.add_message(connection, consumer=consumer.name, topic=results, event=event)
    connect(WRONG)
    with pytest.raises(KafkaException, match=REFUSED):
        create_topics(topics, CONN_ID)
    with pytest.raises(KafkaException, match=REFUSED):
        tasks.claim_messages(consumer, "run")
    with pytest.raises(KafkaException, match=REFUSED):
        tasks.handle_chunk(consumer, chunk, "before")
    # The producer of dead letters and of the outbox.
    producer = AcknowledgedProducer(CONN_ID)
    producer.send(orders.dead_letter_name, key=None, value=b"letter")
    with pytest.raises(DeliveryFailed, match=REFUSED):
        producer.flush()
    capfd.readouterr()
    assert main(["reset", consumer.name, orders.name, "--conn-id", CONN_ID]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert f"connection {CONN_ID}" in line
    assert "invalid credentials" in line
    assert "wrong" not in line
    with pytest.raises(DeliveryFailed):
        produce_with_the_operator(orders.name, order("never"))
    # Our callback cannot know the reason; the stock client writes the reason to the task's log.
    assert "invalid credentials" in capfd.readouterr().err

    assert numbers(orders) == ["1", "2"]
    assert committed() == 4
    assert open_claims(consumer) == 1
    deliver_now(consumer)
    assert outbox_states(consumer) == ["pending"]
    assert len(records(orders.name)) == 4
    assert records(orders.dead_letter_name) == []
    connect({})
    tasks.handle_chunk(consumer, chunk, "before")
    tasks.claim_messages(consumer, "run")
    assert numbers(orders) == ["1", "2", "3"]
    assert [letter.value() for letter in records(orders.dead_letter_name)] == [b"bad"]
    deliver_now(consumer)
    assert outbox_states(consumer) == ["delivered"]
    assert open_claims(consumer) == 0


def test_with_a_wrong_password_the_trigger_waits_and_logs_it_once(consumer, send, connect, tries, caplog):
    send(order(1))
    connect(WRONG)

    async def scenario() -> None:
        async with Firings(trigger_of(consumer)) as firings:
            await until_failed(tries, 2)
            assert firings.at == []
            connect({})
            await firings.until(1, timeout=20)

    def said(what: str) -> list[str]:
        lines = [record.getMessage() for record in caplog.records if record.name == "include.streams.kafka.trigger"]
        return [line for line in lines if what in line]

    asyncio.run(scenario())
    (line,) = said("cannot fetch the lag")
    assert f"connection {CONN_ID}" in line
    assert "invalid credentials" in line
    assert len(said("the broker is back")) == 1


def done(futures: dict) -> None:
    for future in futures.values():
        future.result(20)


def add_user(admin: AdminClient, name: str) -> dict[str, str]:
    """The settings to log in as a new user of the broker."""
    password = uuid.uuid4().hex
    scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    done(admin.alter_user_scram_credentials([UserScramCredentialUpsertion(name, scram, password.encode())]))
    return {"sasl.username": name, "sasl.password": password}


@pytest.mark.parametrize("missing", [AclOperation.READ, AclOperation.DESCRIBE])
def test_a_topic_that_may_not_be_read_delays_no_other(connect, config, consumer, topics, missing):
    allowed, forbidden = topics
    admin = AdminClient(config)
    connect(add_user(admin, "reader"))
    rule = (ResourceType.TOPIC, forbidden.name, ResourcePatternType.LITERAL, "User:reader", "*", missing)
    done(admin.create_acls([AclBinding(*rule, AclPermissionType.DENY)]))
    producer = producer_to({**config, "acks": "all"}, allowed.name, forbidden.name)
    for number, topic in enumerate(topics):
        producer.produce(topic.name, order(number))
    assert producer.flush(20) == 0

    both = replace(consumer, topics=topics)
    assert tasks.claim_messages(both, "first") == []
    assert numbers(allowed) == ["0"]
    assert open_claims(both) == 0
    check_consumer(both)
    assert forbidden.name in alarms(both)["topic_forbidden"]

    done(admin.delete_acls([AclBindingFilter(*rule, AclPermissionType.DENY)]))
    tasks.claim_messages(both, "second")
    assert numbers(forbidden) == ["1"]
    check_consumer(both)
    assert "topic_forbidden" not in alarms(both)


@pytest.mark.parametrize("missing", [AclOperation.WRITE, AclOperation.DESCRIBE])
def test_a_forbidden_dead_letter_topic_delays_nothing_and_is_filled_later(
    connect, config, consumer, topics, send, records, missing
):
    orders, letters = topics[0], topics[0].dead_letter_name
    admin = AdminClient(config)
    connect(add_user(admin, "writer"))

    def rule(operation: AclOperation) -> tuple:
        return (ResourceType.TOPIC, letters, ResourcePatternType.LITERAL, "User:writer", "*", operation)

    done(
        admin.create_acls(
            [
                AclBinding(*rule(AclOperation.ALL), AclPermissionType.ALLOW),
                AclBinding(*rule(missing), AclPermissionType.DENY),
            ]
        )
    )
    whole = replace(consumer, chunk_size=10)
    send(order(1), b"bad", order(2))
    assert tasks.claim_messages(whole, "run") == []
    assert numbers(orders) == ["1", "2"]
    assert open_claims(whole) == 0
    # The Dag's attempts are not refused for good either: the rows wait.
    deliver_now(whole)
    assert outbox_states(whole) == ["pending"]
    assert records(letters) == []

    def alarm() -> str | None:
        with begin() as connection:
            query = text("select message from alarms where source = :name and closed_at is null")
            return connection.scalar(query, {"name": letters})

    by_task = alarm() or ""
    # A person closes the alarm, and the check opens it again, because rows wait in the outbox.
    with begin() as connection:
        assert close_alarm(connection, letters, AlarmKind.dead_letters_wait, "not looked at")
    check_consumers([whole])
    for said in (by_task, alarm() or ""):
        assert f"dead letters of consumer {whole.name} cannot be written to {letters}" in said
        assert "TOPIC_AUTHORIZATION_FAILED" in said
        assert "grant WRITE and DESCRIBE on the topic to the user of " in said
    assert f"connection {CONN_ID}" in by_task

    done(admin.delete_acls([AclBindingFilter(*rule(missing), AclPermissionType.DENY)]))
    deliver_now(whole)
    assert [letter.value() for letter in records(letters)] == [b"bad"]
    assert outbox_states(whole) == ["delivered"]
    check_consumers([whole])
    assert alarm() is None


def test_a_consumer_that_may_read_no_topic_reports_it(connect, config, consumer, topics):
    admin = AdminClient(config)
    rule = (ResourceType.TOPIC, topics[0].name, ResourcePatternType.LITERAL, "User:nobody", "*", AclOperation.READ)
    done(admin.create_acls([AclBinding(*rule, AclPermissionType.ALLOW)]))
    connect(add_user(admin, "stranger"))
    with pytest.raises(KafkaException, match="authorization"):
        tasks.claim_messages(consumer, "run")


def test_a_group_that_may_not_be_read_stops_no_started_consumer(
    connect, config, consumer, topics, send, committed, short_timeouts
):
    admin = AdminClient(config)
    connect(add_user(admin, "groupless"))
    send(order(1), order(2))
    new = replace(consumer, name=f"{consumer.name}-new", chunk_size=10)
    started = replace(consumer, chunk_size=10)
    commit_as_before(config, new.group, topics[0], 1)
    tasks.claim_messages(started, "first")
    rule = (ResourceType.GROUP, consumer.group, ResourcePatternType.PREFIXED, "User:groupless", "*", AclOperation.ALL)
    done(admin.create_acls([AclBinding(*rule, AclPermissionType.DENY)]))
    send(order(3))

    async def fires() -> None:
        async with Firings(trigger_of(started)) as firings, Firings(trigger_of(new)) as none:
            await firings.until(1)
            assert firings.lags == [1]
            assert none.lags == []

    asyncio.run(fires())
    tasks.claim_messages(started, "second")
    assert numbers(topics[0]) == ["1", "2", "3"]
    # It has no position yet, and does not know where to start.
    with pytest.raises(KafkaException, match=f"offsets of group {new.group} cannot be read"):
        tasks.claim_messages(new, "first")
    for each in (started, new):
        # No alarm opens, but the check raises the error.
        with pytest.raises(KafkaException, match=f"offsets of group {each.group} cannot be read"):
            check_consumer(each)
        assert alarms(each) == {}

    done(admin.delete_acls([AclBindingFilter(*rule, AclPermissionType.DENY)]))
    tasks.claim_messages(new, "first")
    assert numbers(topics[0]) == ["1", "2", "2", "3", "3"]
    tasks.claim_messages(started, "third")
    for each in (started, new):
        check_consumer(each)
    assert committed() == 3


def commit_as_before(config: dict[str, Any], group: str, topic: Topic, offset: int) -> None:
    """Commit offsets as the program that used the group before."""
    before = KafkaConsumer({**config, "group.id": group})
    before.commit(offsets=[TopicPartition(topic.name, 0, offset)], asynchronous=False)
    before.close()
