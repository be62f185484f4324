"""Dead letters of a foreign topic are replayed with their headers, and a repair changes the payload."""

from __future__ import annotations

import json

import pytest

from tests import webhooks
from tests.integration.kafka import test_foreign_topics, test_replay
from tests.integration.kafka.conftest import numbers, read_all
from tests.integration.kafka.test_foreign_topics import handle
from tests.integration.kafka.test_handling import outcomes

pytestmark = pytest.mark.integration

make_hooks, make_lane = test_foreign_topics.make_hooks, test_foreign_topics.make_lane


def test_a_repaired_payload_is_sent_with_its_headers_and_key(make_hooks, make_lane, send):
    topic = make_hooks()
    consumer = make_lane(topic)
    test_replay.TOPICS[topic.name] = topic
    test_replay.REPAIRS.renamed(topic, {"project": "repository"})
    push, other = webhooks.webhooks(2, kinds=("push",))
    old = dict(push.document)
    old["project"] = old.pop("repository")
    send(topic, json.dumps(old).encode(), headers=push.headers, key=b"key", partition=1)
    send(topic, b"{}", headers=other.headers)
    handle(consumer, "first")
    assert outcomes(consumer) == {"dead_letter": 2}
    assert test_replay.replayed(topic) == {"replayed": 1, "failing": 1}
    handle(consumer, "second")
    assert outcomes(consumer) == {"dead_letter": 2, "handled": 1}
    assert numbers(topic) == [f"Push {push.delivery}"]
    (_, record) = read_all(topic.name, 1)
    assert record.key() == b"key"
    assert json.loads(record.value()) == push.document
    assert [header for header in record.headers() if not header[0].startswith("replay.")] == push.headers


def test_a_dead_letter_of_a_type_without_a_contract_is_not_replayed(make_hooks, make_lane, send):
    topic = make_hooks()
    consumer = make_lane(topic)
    (issue,) = webhooks.webhooks(1, kinds=("issues",))
    send(topic, b"{}", headers=issue.headers)
    handle(consumer, "run")
    test_replay.TOPICS[topic.name] = webhooks.topic(
        webhooks.ContractUnion(by=webhooks.WEBHOOKS.by, contracts={"push": webhooks.Push}), topic.name
    )
    report = test_replay.run(topic, dry_run=False)
    assert test_replay.counts(report) == {"failing": 1}
    assert report["dead_letters"][0]["detail"] == "not wanted: no contract of the topic's union takes its type"
