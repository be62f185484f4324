"""A broker that requires OAuth tokens: every client gets one by the connection's settings or its callback."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import pytest
from confluent_kafka import TopicPartition

from include.streams.contracts import Topic
from include.streams.kafka import tasks
from include.streams.kafka.connection import CALLBACK_ALLOWLIST, CallbackNotAllowed, client_config
from include.streams.kafka.consumers import Consumer
from include.streams.kafka.topics import create_topics
from include.streams.kafka.trigger import ConsumerLagTrigger
from stack import kafka
from tests.clients import producer_to, reader_at
from tests.conftest import start_stack
from tests.integration.kafka.conftest import Order, numbers, open_claims, order
from tests.integration.kafka.test_trigger import Firings

pytestmark = pytest.mark.integration

CONN_ID = "kafka_oauth"
LOGIN = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required"
BUILT_IN = {"enable.sasl.oauthbearer.unsecure.jwt": "true", "sasl.oauthbearer.config": "principal=airflow"}
CALLBACK = {"oauth_cb": f"{__name__}.token"}
asked: list[str] = []


def token(config: str) -> tuple[str, float]:
    """(token without a signature, time when it expires), as confluent-kafka's oauth_cb returns it."""
    asked.append(config)
    now = time.time()
    claims = {"sub": "airflow", "iat": now, "exp": now + 300}
    header, payload = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "none"}, claims)
    )
    return f"{header.decode()}.{payload.decode()}.", now + 300


class OAuthKafka(kafka.Kafka):
    """The stack's broker, with OAuth tokens. It checks no signature, because there is no identity provider."""

    def server_settings(self) -> dict[str, str]:
        return {
            **super().server_settings(),
            "listener.security.protocol.map": "CLIENT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": "OAUTHBEARER",
            "sasl.mechanism.inter.broker.protocol": "OAUTHBEARER",
            "listener.name.client.oauthbearer.sasl.jaas.config": f'{LOGIN} unsecuredLoginStringClaim_sub="broker";',
        }

    def client_config(self) -> dict[str, str]:
        return {
            **super().client_config(),
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "OAUTHBEARER",
            **BUILT_IN,
        }


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The settings of a client of the broker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stack.stack.Kafka", OAuthKafka)
        stack = start_stack(tmp_path_factory.mktemp("oauth"), ("kafka",))
    yield stack.endpoints()["kafka"]["client_config"]
    stack.remove()


@pytest.fixture(params=[BUILT_IN, CALLBACK], ids=["settings", "callback"])
def connection(request, config, operations, monkeypatch) -> Iterator[None]:
    bare = {name: value for name, value in config.items() if name not in BUILT_IN}
    extra = {"conn_type": "kafka", "extra": {**bare, **request.param}}
    monkeypatch.setenv(f"AIRFLOW_CONN_{CONN_ID.upper()}", json.dumps(extra))
    monkeypatch.setenv(CALLBACK_ALLOWLIST, CALLBACK["oauth_cb"])
    asked.clear()
    yield
    assert bool(asked) == (request.param is CALLBACK)


def test_every_client_logs_in_with_a_token(connection, config):
    name = f"orders.{uuid.uuid4().hex[:8]}"
    topic = Topic(name, Order, key="number", partitions=1, retention=timedelta(days=1))
    create_topics([topic], CONN_ID)
    consumer = Consumer(
        name=f"consumer-{uuid.uuid4().hex[:8]}",
        topics=(topic,),
        effect="tests.integration.kafka.conftest:record_effect",
        conn_id=CONN_ID,
    )
    producer = producer_to({**config, "acks": "all"}, name)
    producer.produce(name, order(7))
    producer.produce(name, b"not an order")
    assert producer.flush(20) == 0

    async def fires() -> None:
        async with Firings(ConsumerLagTrigger(topics=[name], group=consumer.group, conn_id=CONN_ID)) as firings:
            await firings.until(1)

    asyncio.run(fires())
    for chunk in tasks.claim_messages(consumer, "run"):
        tasks.handle_chunk(consumer, chunk, "run")
    assert numbers(topic) == ["7"]
    assert open_claims(consumer) == 0
    reader = reader_at({**config, "enable.partition.eof": True}, TopicPartition(topic.dead_letter_name, 0, 0))
    assert reader.poll(20).value() == b"not an order"
    reader.close()


@pytest.mark.parametrize("allowed", [None, "some.other.callback"])
def test_a_callback_that_is_not_allowed_is_named_with_a_remedy(allowed, monkeypatch):
    extra = {"bootstrap.servers": "127.0.0.1:1", **CALLBACK}
    monkeypatch.setenv(f"AIRFLOW_CONN_{CONN_ID.upper()}", json.dumps({"conn_type": "kafka", "extra": extra}))
    monkeypatch.setenv(CALLBACK_ALLOWLIST, allowed) if allowed else monkeypatch.delenv(
        CALLBACK_ALLOWLIST, raising=False
    )
    with pytest.raises(CallbackNotAllowed) as raised:
        client_config(CONN_ID)
    assert str(raised.value).startswith(f"connection {CONN_ID}: ")
    assert f"'{CALLBACK['oauth_cb']}'" in str(raised.value)
    assert CALLBACK_ALLOWLIST in str(raised.value)
