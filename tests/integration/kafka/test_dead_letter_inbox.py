"""The inbox of dead letters on real services: index, list, search, content, masks, and letters of other writers."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Annotated, Literal

import pytest
from sqlalchemy import text

from include.streams import Contract, Package, Personal, Project, Registry, Topic
from include.streams.kafka import tasks
from include.streams.kafka.dead_letter_index import index_dead_letters
from include.streams.operations.database import begin
from include.streams.pages.reading import read_only
from include.streams.streams_page.views import Unknown, Views
from tests.integration.kafka.conftest import order

pytestmark = pytest.mark.integration

MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def read(function):
    with read_only() as connection:
        return function(connection)


def views_of(consumer, *topics) -> Views:
    registry = Registry(*(topics or consumer.topics))
    return Views(Project(Package(name="shop", topics=registry, consumers=(consumer,))), read)


@pytest.fixture
def consumer(make_topic, make_consumer):
    return make_consumer(make_topic(partitions=1))


def test_dead_letters_are_indexed_once_and_listed(consumer, send):
    (topic,) = consumer.topics
    send(topic, order("a"), b"not json", order("b", amount="many"))
    tasks.claim_messages(consumer, "run")
    assert index_dead_letters([topic], seconds=60) == 2
    assert index_dead_letters([topic], seconds=60) == 0
    document = views_of(consumer).letters({})
    assert {letter["reason"] for letter in document["letters"]} == {"not_json", "wrong_type"}
    assert (document["total"], document["facets"]["topic"]) == (2, {topic.name: 2})
    (letter,) = views_of(consumer).letters({"reason": "wrong_type"})["letters"]
    assert (letter["consumer"], letter["source_partition"], letter["source_offset"]) == (consumer.name, 0, 2)
    for search, found in (("NOT_JSON", 1), (f"{topic.name}-0@2", 1), ("'; drop table dead_letters --", 0)):
        assert views_of(consumer).letters({"topic": topic.name, "search": search})["total"] == found, search


def test_a_letter_shows_its_content_as_text(consumer, send):
    (topic,) = consumer.topics
    send(topic, json.dumps({"version": 1, "number": MARKUP, "amount": "many"}).encode())
    tasks.claim_messages(consumer, "run")
    index_dead_letters([topic], seconds=60)
    letter = views_of(consumer).letter(topic.name, 0, 0, sees_personal=False)
    assert MARKUP in letter["content"]["payload"]
    assert letter["content"]["is_masked"] is False
    assert letter["content"]["repair"]["passes"] is False
    assert "wrong_type" in letter["content"]["repair"]["text"]
    assert {"dlq.reason", "dlq.run_id"} <= {header["name"] for header in letter["content"]["headers"]}


def test_a_replayed_letter_is_no_longer_open(consumer, send):
    (topic,) = consumer.topics
    send(topic, b"not json")
    tasks.claim_messages(consumer, "run")
    index_dead_letters([topic], seconds=60)
    with begin() as connection:
        connection.execute(
            text(
                """
                insert into replays (topic_id, "partition", "offset", topic, source_timestamp, outcome, run_id)
                select topic_id, "partition", "offset", topic, source_timestamp, 'settled', 'run' from dead_letters
                where topic = :topic
                """
            ),
            {"topic": topic.name},
        )
    assert views_of(consumer).letters({"topic": topic.name})["letters"] == []
    (letter,) = views_of(consumer).letters({"topic": topic.name, "state": "all"})["letters"]
    assert letter["outcome"] == "settled"


class Visit(Contract):
    version: Literal[1]
    number: str
    name: Annotated[str, Personal()]

    @property
    def event_id(self) -> str:
        return self.number


def test_personal_data_are_masked_without_the_permission(consumer, send):
    (plain,) = consumer.topics
    # The contract of the same topic, with a mark.
    topic = Topic(plain.name, Visit, key="number", partitions=1, retention=timedelta(days=1))
    send(
        plain,
        json.dumps({"version": 1, "number": "7", "name": "Ann Smith", "nmae": "Ann Smith"}).encode(),
        b"Ann Smith",
    )
    tasks.claim_messages(consumer, "run")
    index_dead_letters([plain], seconds=60)
    views = views_of(consumer, topic)
    for offset in (0, 1):
        assert "Ann" not in json.dumps(views.letter(topic.name, 0, offset, sees_personal=False))
        assert "Ann Smith" in json.dumps(views.letter(topic.name, 0, offset, sees_personal=True))
    shown = json.loads(views.letter(topic.name, 0, 0, sees_personal=False)["content"]["payload"])
    assert shown["number"] == "7"


def test_letters_of_other_writers_are_listed(consumer, send):
    (topic,) = consumer.topics
    headers = [("__connect.errors.topic", b"x"), ("__connect.errors.exception.class.name", b"a.b.DataException")]
    send(topic.dead_letter_name, b"value", headers=headers)
    index_dead_letters([topic], seconds=60)
    (letter,) = views_of(consumer).letters({"topic": topic.name})["letters"]
    assert (letter["writer"], letter["reason"]) == ("connect", "DataException")
    content = views_of(consumer).letter(topic.name, 0, 0, sees_personal=False)["content"]
    assert "not replayed" in content["repair"]["text"]


def test_parameters_that_cannot_be_read_are_refused(consumer):
    for parameters in ({"hours": "x"}, {"before": "x"}, {"before": "2026-01-01|a|b|c"}):
        with pytest.raises(Unknown):
            views_of(consumer).letters(parameters)
