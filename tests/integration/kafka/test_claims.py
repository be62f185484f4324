"""A run owns offset ranges: each offset belongs to one run, whatever process is killed."""

import threading
import time

import pytest
from airflow.sdk.exceptions import AirflowFailException
from confluent_kafka import TopicPartition
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.kafka.claims import claim
from include.streams.kafka.offsets import GroupOffsets, Partition
from include.streams.kafka.reset import NothingToReset, reset_consumer
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import (
    alarms,
    committed,
    effects,
    numbers,
    open_claims,
    order,
    wait_for_topics,
    whole_run,
)

pytestmark = pytest.mark.integration


def ranges_of(consumer, run_id):
    with begin() as connection:
        rows = connection.execute(
            text(
                "select topic, partition, start_offset, end_offset from claim_ranges join claims on id = claim_id "
                "where consumer = :consumer and run_id = :run_id order by 1, 2"
            ),
            {"consumer": consumer.name, "run_id": run_id},
        )
        return [tuple(row) for row in rows]


def test_a_claim_handles_its_messages_and_commits_their_offsets(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(1), order(2), partition=0)
    send(topic, order(3), partition=2)
    assert tasks.claim_messages(consumer, "run") == []
    assert effects(topic) == [(0, 0, "1"), (0, 1, "2"), (2, 0, "3")]
    assert committed(admin, consumer.group, topic) == {0: 2, 2: 1}
    assert open_claims(consumer) == 0


def test_a_cleared_run_gets_the_same_ranges_and_repeats_no_effect(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(1), order(2))
    tasks.claim_messages(consumer, "first")
    before = ranges_of(consumer, "first")
    send(topic, order(3))
    whole_run(consumer, "first")
    assert ranges_of(consumer, "first") == before == [(topic.name, 0, 0, 2)]
    assert numbers(topic) == ["1", "2"]
    tasks.claim_messages(consumer, "second")
    assert ranges_of(consumer, "second") == [(topic.name, 0, 2, 3)]
    assert numbers(topic) == ["1", "2", "3"]


def test_an_empty_claim_has_a_row_and_keeps_it_empty_when_messages_come(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    tasks.claim_messages(consumer, "empty")
    assert open_claims(consumer) == 0
    send(topic, order(1))
    tasks.claim_messages(consumer, "empty")
    assert effects(topic) == []
    tasks.claim_messages(consumer, "next")
    assert numbers(topic) == ["1"]


def test_two_concurrent_claims_take_each_offset_once(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic, max_messages_per_claim=40, chunk_size=40)
    for partition in range(3):
        send(topic, *(order(f"{partition}/{n}") for n in range(60)), partition=partition)
    failures = []

    def work(name):
        try:
            for n in range(3):
                tasks.claim_messages(consumer, f"{name}-{n}")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(numbers(topic)) == len(set(numbers(topic))) == 180
    assert committed(admin, consumer.group, topic) == {0: 60, 1: 60, 2: 60}


def test_two_concurrent_claims_of_one_run_have_each_effect_once(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, *(order(n) for n in range(100)))
    threads = [threading.Thread(target=tasks.claim_messages, args=(consumer, "run")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(numbers(topic)) == len(set(numbers(topic))) == 100
    assert open_claims(consumer) == 0


def test_after_a_kill_before_the_commit_the_next_run_commits_the_offsets(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(1))

    def killed(_):
        raise KeyboardInterrupt

    with GroupOffsets(consumer.group) as group, pytest.raises(KeyboardInterrupt):
        claim(consumer.name, "killed", lambda: group.fetch_offsets_sync([topic.name]), killed, max_messages=100)
    # The trigger still sees lag, so it starts another run.
    assert committed(admin, consumer.group, topic) == {}
    tasks.claim_messages(consumer, "other")
    assert committed(admin, consumer.group, topic) == {0: 1}
    assert open_claims(consumer) == 1
    whole_run(consumer, "killed")
    assert numbers(topic) == ["1"]
    assert open_claims(consumer) == 0


def test_a_claim_killed_before_its_rows_are_committed_changes_nothing(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(1))

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        claim(consumer.name, "killed", killed, lambda _: None, max_messages=100)
    assert ranges_of(consumer, "killed") == []
    tasks.claim_messages(consumer, "other")
    assert numbers(topic) == ["1"]


def test_committed_offsets_never_move_back(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(1))
    tasks.claim_messages(consumer, "old")
    send(topic, order(2))
    tasks.claim_messages(consumer, "new")
    tasks.claim_messages(consumer, "old")
    assert committed(admin, consumer.group, topic) == {0: 2}


def test_lost_committed_offsets_are_committed_again_and_repeat_nothing(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(1))
    tasks.claim_messages(consumer, "run")
    for future in admin.delete_consumer_groups([consumer.group]).values():
        future.result(10)
    assert committed(admin, consumer.group, topic) == {}
    tasks.claim_messages(consumer, "next")
    assert committed(admin, consumer.group, topic) == {0: 1}
    assert numbers(topic) == ["1"]


def test_the_first_claim_starts_at_the_groups_committed_offset(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(1), order(2))
    with GroupOffsets(consumer.group) as group:
        group.commit({Partition(topic.name, 0): 1})
    tasks.claim_messages(consumer, "run")
    assert numbers(topic) == ["2"]


def test_a_busy_partition_does_not_delay_the_others(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, max_messages_per_claim=10, chunk_size=10)
    send(topic, *(order(f"busy {n}") for n in range(100)), partition=0)
    send(topic, order("calm"), partition=2)
    tasks.claim_messages(consumer, "run")
    assert ranges_of(consumer, "run") == [(topic.name, 0, 0, 9), (topic.name, 2, 0, 1)]


def test_partitions_that_are_added_later_are_claimed(make_topic, make_consumer, send, admin):
    from confluent_kafka.admin import NewPartitions

    topic = make_topic(partitions=1)
    consumer = make_consumer(topic)
    send(topic, order(1))
    tasks.claim_messages(consumer, "first")
    for future in admin.create_partitions([NewPartitions(topic.name, 2)]).values():
        future.result(10)
    wait_for_topics(admin, topic.name)
    send(topic, order(2), partition=1)
    tasks.claim_messages(consumer, "second")
    assert effects(topic) == [(0, 0, "1"), (1, 0, "2")]


def test_a_topic_that_does_not_exist_delays_no_other(make_topic, make_consumer, send):
    from datetime import timedelta

    from include.streams.contracts import Topic
    from tests.integration.kafka.conftest import Order

    topic = make_topic()
    later = Topic(f"{topic.name}.later", Order, key="number", partitions=1, retention=timedelta(days=1))
    consumer = make_consumer(later, topic)
    send(topic, order(1))
    tasks.claim_messages(consumer, "first")
    assert numbers(topic) == ["1"]
    make_topic(name=later.name, partitions=1)
    send(later, order(2))
    tasks.claim_messages(consumer, "second")
    assert numbers(later) == ["2"]


def remake(admin, topic, make_topic):
    for future in admin.delete_topics([topic.name, topic.dead_letter_name]).values():
        future.result(30)
    for _ in range(50):
        time.sleep(0.2)
        if not {topic.name, topic.dead_letter_name} & set(admin.list_topics(timeout=10).topics):
            break
    make_topic(name=topic.name)


def test_a_recreated_topic_stops_its_consumer_until_a_reset(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("old"))
    tasks.claim_messages(consumer, "first")
    remake(admin, topic, make_topic)
    send(topic, order("new"), order("newer"))
    command = f"python -m include.streams.kafka reset {consumer.name} {topic.name}"
    for _ in range(2):
        with pytest.raises(AirflowFailException, match=command):
            tasks.claim_messages(consumer, "second")
    assert numbers(topic) == ["old"]
    assert command in alarms(consumer)["consumer_stopped"]

    assert reset_consumer(consumer.name, topic.name)
    tasks.claim_messages(consumer, "third")
    assert sorted(numbers(topic)) == ["new", "newer", "old"]
    assert committed(admin, consumer.group, topic)[0] == 2
    assert alarms(consumer) == {}


def killed(*_, **__) -> None:
    raise KeyboardInterrupt


def test_a_retried_run_takes_no_messages_of_a_recreated_topic(make_topic, make_consumer, send, admin, monkeypatch):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order("old"))
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "_handle", killed)
        with pytest.raises(KeyboardInterrupt):
            tasks.claim_messages(consumer, "killed after its claim")
    remake(admin, topic, make_topic)
    send(topic, order("new"))
    with pytest.raises(AirflowFailException, match="recreated"):
        tasks.claim_messages(consumer, "killed after its claim")
    assert numbers(topic) == []
    assert open_claims(consumer) == 1


def test_a_reset_closes_claims_on_removed_offsets_and_names_the_lost_ones(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic, max_messages_per_claim=4, chunk_size=1)
    send(topic, *(order(n) for n in range(4)))
    chunks = tasks.claim_messages(consumer, "first")
    assert (len(chunks), open_claims(consumer)) == (3, 1)
    remake(admin, topic, make_topic)
    with pytest.raises(AirflowFailException, match="recreated"):
        tasks.handle_chunk(consumer, chunks[0], "first")
    reset_consumer(consumer.name, topic.name)
    assert open_claims(consumer) == 0
    assert "lost" in alarms(consumer)["messages_lost"]


def test_a_reset_of_a_consumer_without_claims_is_refused(make_topic, make_consumer):
    topic = make_topic()
    with pytest.raises(NothingToReset, match=topic.name):
        reset_consumer(make_consumer(topic).name, topic.name)


def test_messages_that_retention_removed_are_named_and_the_rest_is_handled(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, order(0))
    tasks.claim_messages(consumer, "first")
    send(topic, *(order(n) for n in range(1, 6)))
    for future in admin.delete_records([TopicPartition(topic.name, 0, 4)]).values():
        future.result(10)
    tasks.claim_messages(consumer, "second")
    assert numbers(topic) == ["0", "4", "5"]
    assert f"{topic.name}-0 [1, 4)" in alarms(consumer)["messages_lost"]
    assert open_claims(consumer) == 0


def test_messages_removed_between_claim_and_reading_are_named_as_lost(make_topic, make_consumer, send, admin):
    topic = make_topic()
    consumer = make_consumer(topic, chunk_size=2)
    send(topic, *(order(n) for n in range(6)))
    chunks = tasks.claim_messages(consumer, "run")
    for future in admin.delete_records([TopicPartition(topic.name, 0, 5)]).values():
        future.result(10)
    for chunk in chunks:
        tasks.handle_chunk(consumer, chunk, "run")
    assert numbers(topic) == ["0", "1", "5"]
    assert "2 messages" in alarms(consumer)["messages_lost"]
    assert open_claims(consumer) == 0


def test_a_claim_stays_open_until_its_last_chunk_is_handled(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, chunk_size=2)
    send(topic, *(order(n) for n in range(5)))
    chunks = tasks.claim_messages(consumer, "run")
    assert len(chunks) == 2
    for chunk in chunks:
        assert open_claims(consumer) == 1
        tasks.handle_chunk(consumer, chunk, "run")
    assert open_claims(consumer) == 0


def test_the_last_two_chunks_close_the_claim_if_they_finish_at_once(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, chunk_size=1)
    send(topic, *(order(n) for n in range(9)))
    chunks = tasks.claim_messages(consumer, "run")
    threads = [threading.Thread(target=tasks.handle_chunk, args=(consumer, chunk, "run")) for chunk in chunks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(numbers(topic)) == 9
    assert open_claims(consumer) == 0


def test_a_changed_chunk_size_between_two_tries_neither_skips_nor_repeats(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, chunk_size=4)
    send(topic, *(order(n) for n in range(10)))
    tasks.claim_messages(consumer, "run")
    other = make_consumer(topic, name=consumer.name, chunk_size=3)
    for chunk in tasks.claim_messages(other, "run"):
        tasks.handle_chunk(other, chunk, "run")
    assert numbers(topic) == [str(n) for n in range(10)]
    assert open_claims(consumer) == 0


def test_lag_above_the_limit_opens_one_alarm_with_remedies(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, max_messages_per_claim=5, chunk_size=5, max_lag=10)
    send(topic, *(order(n) for n in range(20)))
    tasks.claim_messages(consumer, "first")
    tasks.claim_messages(consumer, "second")
    message = alarms(consumer)["lag"]
    assert f"20 messages behind, limit 10 ({topic.name}: 20)" in message
    assert "max_active_runs" in message
    assert "standard lane" in message
    tasks.claim_messages(consumer, "third")
    assert "lag" in alarms(consumer), "at the limit, the episode goes on"
    tasks.claim_messages(consumer, "fourth")
    assert "lag" not in alarms(consumer)
