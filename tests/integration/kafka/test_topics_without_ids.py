"""Brokers without topic ids: the topic's name distinguishes the messages of two topics."""

import pytest
from airflow.sdk.exceptions import AirflowFailException

from include.streams.kafka import offsets, tasks
from include.streams.kafka.consumers import Shape
from include.streams.kafka.offsets import GroupOffsets
from include.streams.kafka.reset import reset_consumer
from tests.integration.kafka.conftest import numbers, open_claims, order
from tests.integration.kafka.test_claims import remake

pytestmark = pytest.mark.integration


@pytest.fixture
def without_ids(monkeypatch):
    """The broker answers as brokers without topic ids do."""
    describe = GroupOffsets._describe

    class WithoutId:
        topic_id = offsets.ZERO_TOPIC_ID

        def __init__(self, description) -> None:
            self.partitions = description.partitions

    async def described(self, topics):
        descriptions = await describe(self, topics)
        return {topic: description and WithoutId(description) for topic, description in descriptions.items()}

    monkeypatch.setattr(GroupOffsets, "_describe", described)


def test_equal_offsets_of_two_topics_are_two_messages(make_topic, make_consumer, send, without_ids, caplog):
    first, second = make_topic(), make_topic()
    consumer = make_consumer(first, second)
    send(first, order("a"))
    send(second, order("b"))
    tasks.claim_messages(consumer, "run")
    tasks.claim_messages(consumer, "another")
    assert (numbers(first), numbers(second)) == (["a"], ["b"])
    said = [record.getMessage() for record in caplog.records if first.name in record.getMessage()]
    assert len([line for line in said if "gives it no topic id" in line]) == 1


def test_a_shorter_recreated_topic_is_detected_and_new_after_a_reset(
    make_topic, make_consumer, send, admin, without_ids
):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("old 0"), order("old 1"))
    tasks.claim_messages(consumer, "first")
    remake(admin, topic, make_topic)
    send(topic, order("new 0"))
    with pytest.raises(AirflowFailException, match=r"the log of topic .* was truncated \(offsets"):
        tasks.claim_messages(consumer, "second")
    reset_consumer(consumer.name, topic.name)
    send(topic, order("new 1"), order("new 2"))
    tasks.claim_messages(consumer, "third")
    assert [number for number in numbers(topic) if number.startswith("new")] == ["new 0", "new 1", "new 2"]


def test_equal_offsets_of_other_or_recreated_topics_are_other_messages(
    make_topic, make_consumer, send, admin, without_ids
):
    first, second = make_topic(), make_topic()
    consumer = make_consumer(first, second, shape=Shape.per_message)

    def handle(run_id: str) -> None:
        for key in tasks.claim_partition_keys(consumer, run_id):
            tasks.handle_message(consumer, key, f"{run_id} {key}")

    send(first, order("a"), order("b"))
    send(second, order("c"), b"junk")
    handle("run")
    assert (numbers(first), numbers(second)) == (["a", "b"], ["c"])
    remake(admin, first, make_topic)
    send(first, order("new a"))
    send(second, order("d"))
    handle("other topics go on")
    assert (numbers(first), numbers(second)) == (["a", "b"], ["c", "d"])
    reset_consumer(consumer.name, first.name)
    handle("reset")
    assert numbers(first) == ["a", "new a", "b"]
    assert open_claims(consumer) == 0
