"""A foreign topic with several types of messages: each message has one outcome."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Callable
from typing import Annotated

import pytest
from confluent_kafka.admin import NewTopic
from pydantic import Field
from sqlalchemy import text

from include.streams.contracts import At, ContractUnion, Topic
from include.streams.contracts.breaking import broken_foreign
from include.streams.contracts.types import Line
from include.streams.kafka import tasks
from include.streams.kafka.consumers import Consumer, Shape
from include.streams.kafka.topics import create_topics
from include.streams.operations.database import begin
from tests import webhooks
from tests.integration.kafka.conftest import alarms, numbers, open_claims, read_all, wait_for_topics, whole_run
from tests.integration.kafka.test_handling import outcomes

pytestmark = pytest.mark.integration


def record_webhook(connection, message) -> None:
    connection.execute(
        text("insert into test_effects values (:topic, :partition, :offset, :number)"),
        {
            "topic": message.topic,
            "partition": message.partition,
            "offset": message.offset,
            "number": f"{type(message.event).__name__} {message.event.delivery}",
        },
    )


@pytest.fixture
def make_hooks(admin) -> Callable[..., Topic]:
    def make(contract=webhooks.WEBHOOKS) -> Topic:
        topic = webhooks.topic(contract, f"hooks.{uuid.uuid4().hex[:8]}")
        new = [
            NewTopic(topic.name, topic.partitions, 1, config=topic.kafka_config()),
            NewTopic(topic.dead_letter_name, 1, 1, config=topic.dead_letter_config()),
        ]
        for future in admin.create_topics(new).values():
            future.result(30)
        wait_for_topics(admin, topic.name, topic.dead_letter_name)
        return topic

    return make


@pytest.fixture
def make_lane(make_consumer) -> Callable[..., Consumer]:
    def make(topic: Topic, shape: Shape = Shape.chunked, name: str | None = None) -> Consumer:
        return Consumer(
            name=name or f"hooks-{uuid.uuid4().hex[:8]}",
            topics=(topic,),
            effect=f"{__name__}:record_webhook",
            shape=shape,
        )

    return make


def handle(consumer: Consumer, run_id: str) -> None:
    if consumer.shape is Shape.chunked:
        assert tasks.claim_messages(consumer, run_id) == []
    else:
        for key in tasks.claim_partition_keys(consumer, run_id):
            tasks.handle_message(consumer, key, f"{run_id} {key}")


@pytest.mark.parametrize("shape", [Shape.chunked, Shape.per_message])
def test_each_message_is_handled_counted_or_a_dead_letter_by_its_type(make_hooks, make_lane, send, shape):
    topic = make_hooks()
    consumer = make_lane(topic, shape)
    some = list(webhooks.webhooks(12))
    for number, webhook in enumerate(some):
        send(topic, webhook.value, headers=webhook.headers, key=webhook.key, partition=number % 2)
    push = some[0]
    for message in broken_foreign(topic, push.value, push.headers).values():
        send(topic, message, headers=push.headers, key=push.key)
    send(topic, push.value, headers=[("X-Hub-Delivery", b"no-type")])
    handle(consumer, "run")
    assert outcomes(consumer) == {"handled": 9, "not_wanted": 3, "dead_letter": 8}
    wanted = {"push": "Push", "issues": "Issue", "pull_request": "PullRequest"}
    assert sorted(numbers(topic)) == sorted(
        f"{wanted[webhook.kind]} {webhook.delivery}" for webhook in some if webhook.kind in wanted
    )
    assert open_claims(consumer) == 0
    letters = read_all(topic.dead_letter_name)
    assert len(letters) == 8
    assert {dict(letter.headers())["X-Hub-Delivery"] for letter in letters} == {push.delivery.encode(), b"no-type"}
    details = {dict(letter.headers())["dlq.detail"] for letter in letters}
    assert {b"repository.full_name (missing)", b"header X-Hub-Event (missing)"} <= details


def test_a_repeated_delivery_is_a_duplicate_or_a_conflict(make_hooks, make_lane, send):
    topic = make_hooks()
    consumer = make_lane(topic)
    (push,) = webhooks.webhooks(1, kinds=("push",))
    other = {**push.document, "stars": 5, "commits": []}
    changed = {**push.document, "ref": "refs/heads/other"}
    for document in (push.document, other, changed):
        send(topic, json.dumps(document).encode(), headers=push.headers)
    handle(consumer, "run")
    assert outcomes(consumer) == {"handled": 1, "duplicate": 1, "dead_letter": 1}
    assert dict(read_all(topic.dead_letter_name)[0].headers())["dlq.reason"] == b"conflict"


class Wider(webhooks.Push):
    contract_name = "Push"
    branch: Annotated[Line, At("repository.default_branch"), Field(max_length=40)] | None = None


def test_after_one_more_picked_field_a_copy_is_still_a_duplicate(make_hooks, make_lane, send):
    topic = make_hooks()
    consumer = make_lane(topic)
    (push,) = webhooks.webhooks(1, kinds=("push",))
    send(topic, push.value, headers=push.headers)
    handle(consumer, "before")
    wider = webhooks.topic(ContractUnion(by=webhooks.WEBHOOKS.by, contracts={"push": Wider}), topic.name)
    after = make_lane(wider, name=consumer.name)
    send(topic, push.value, headers=push.headers)
    handle(after, "after")
    assert outcomes(consumer) == {"handled": 1, "duplicate": 1}
    assert alarms(consumer) == {}


def test_messages_that_are_not_wanted_do_not_hide_dead_letters(make_hooks, make_lane, send):
    topic = make_hooks()
    consumer = make_lane(topic)
    (star,) = webhooks.webhooks(1, kinds=("star",))
    for _ in range(60):
        send(topic, star.value, headers=star.headers)
    for _ in range(15):
        send(topic, b"{}", headers=[("X-Hub-Event", b"push")])
    handle(consumer, "run")
    assert outcomes(consumer) == {"not_wanted": 60, "dead_letter": 15}
    assert "15 of the latest 15 messages (100 %)" in alarms(consumer)["many_dead_letters"]


def test_a_cleared_run_counts_no_message_twice(make_hooks, make_lane, send):
    topic = make_hooks()
    consumer = make_lane(topic)
    for webhook in webhooks.webhooks(8):
        send(topic, webhook.value, headers=webhook.headers)
    for _ in range(2):
        whole_run(consumer, "run")
        assert outcomes(consumer) == {"handled": 6, "not_wanted": 2}
        assert len(numbers(topic)) == 6


def test_a_message_that_was_not_wanted_stays_so_after_its_type_is_added(make_hooks, make_lane, send):
    """If a union gets a type later, earlier messages of this type stay not wanted, and have no effect."""
    topic = make_hooks()
    consumer = make_lane(topic)
    (star,) = webhooks.webhooks(1, kinds=("star",))
    send(topic, star.value, headers=star.headers)
    handle(consumer, "before")

    contracts = {"star": webhooks.Star, "push": webhooks.Push}
    after = make_lane(
        webhooks.topic(ContractUnion(by=webhooks.WEBHOOKS.by, contracts=contracts), topic.name), name=consumer.name
    )
    send(topic, star.value, headers=star.headers)
    handle(after, "after")
    with begin() as connection:
        query = text('select "offset", outcome from inbox where consumer = :name order by 1')
        rows = [tuple(row) for row in connection.execute(query, {"name": consumer.name})]
    assert rows == [(0, "not_wanted"), (1, "handled")]


def test_a_foreign_topic_gets_no_further_partitions(make_hooks):
    topic = make_hooks()
    assert create_topics([dataclasses.replace(topic, partitions=5)]) == []
