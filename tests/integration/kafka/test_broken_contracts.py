"""Many dead letters of a topic open an alarm about its producer; it closes when the messages are valid again."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import text

from include.streams.kafka import broken_contracts, tasks
from include.streams.kafka.consumers import Shape
from include.streams.kafka.watch import check_consumer
from include.streams.operations.database import begin
from tests.integration.kafka.conftest import alarms, open_claims, order
from tests.integration.kafka.test_losses import events

pytestmark = pytest.mark.integration


def test_many_dead_letters_open_an_alarm_until_valid_messages_follow(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, *(b"junk" for _ in range(30)), order(1))
    tasks.claim_messages(consumer, "first")
    alarm = alarms(consumer)["many_dead_letters"]
    assert "30 of the latest 31 messages (96 %)" in alarm
    assert "30 of them with not_json" in alarm
    assert "schema registry" not in alarm
    check_consumer(consumer)
    assert "many_dead_letters" in alarms(consumer)
    send(topic, *(order(f"good {n}") for n in range(100)))
    tasks.claim_messages(consumer, "second")
    check_consumer(consumer)
    assert "many_dead_letters" not in alarms(consumer)


def test_the_alarm_names_messages_framed_by_a_schema_registry(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, *(b"\0\0\0\0\7" + order(n) for n in range(12)))
    tasks.claim_messages(consumer, "run")
    assert "12 begin like messages of a schema registry" in alarms(consumer)["many_dead_letters"]


def test_some_dead_letters_among_valid_messages_open_no_alarm(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic)
    send(topic, *(b"junk" if n % 4 == 0 else order(n) for n in range(60)))
    tasks.claim_messages(consumer, "run")
    assert "many_dead_letters" not in alarms(consumer)


def test_messages_that_wait_for_their_runs_count_as_valid(make_topic, make_consumer, send):
    topic = make_topic()
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, *(b"junk" for _ in range(12)), *(order(n) for n in range(60)))
    tasks.claim_partition_keys(consumer, "fan out")
    assert "many_dead_letters" not in alarms(consumer)


def junk(number: int) -> list[bytes]:
    return [b"junk"] * number


def good(number: int, first: int = 0) -> list[bytes]:
    return [order(f"good {n}") for n in range(first, first + number)]


def let_days_pass(consumer, days: int) -> None:
    with begin() as connection:
        older = text("update inbox set recorded_at = recorded_at - make_interval(days => :days) where consumer = :name")
        connection.execute(older, {"days": days, "name": consumer.name})


def test_a_broken_topic_opens_an_alarm_beside_a_busy_healthy_topic(make_topic, make_consumer, send):
    """Of the latest messages of both topics, the dead letters would be a third: the other topic has more partitions."""
    broken, healthy = make_topic(partitions=2), make_topic(partitions=4)
    consumer = make_consumer(broken, healthy, max_messages_per_claim=1_000)
    for partition in range(2):
        send(broken, *junk(40), partition=partition)
    for partition in range(4):
        send(healthy, *good(100, 100 * partition), partition=partition)
    tasks.claim_messages(consumer, "first")
    alarm = alarms(consumer)["many_dead_letters"]
    assert f"topic {broken.name}: 80 of the latest 80 messages (100 %)" in alarm
    assert "80 of them with not_json" in alarm
    assert healthy.name not in alarm
    # The alarm stays open while only the other topic has new messages.
    send(healthy, *good(10, 1_000))
    tasks.claim_messages(consumer, "second")
    check_consumer(consumer)
    assert "many_dead_letters" in alarms(consumer)


def test_a_further_broken_topic_has_its_own_alarm_and_is_notified_once(make_topic, make_consumer, send):
    first, second = make_topic(partitions=1), make_topic(partitions=1)
    consumer = make_consumer(first, second)
    send(first, *junk(20))
    tasks.claim_messages(consumer, "first")
    # A topic with an open alarm is not notified again because of another count.
    send(first, *junk(10))
    tasks.claim_messages(consumer, "first again")
    send(second, *junk(15))
    tasks.claim_messages(consumer, "second")
    check_consumer(consumer)
    alarm = alarms(consumer)["many_dead_letters"]
    assert f"topic {first.name}: 20 of the latest 20 messages" in alarm
    assert f"topic {second.name}: 15 of the latest 15 messages" in alarm
    assert events(consumer) == [("opened", first.name), ("opened", second.name)]
    send(first, *good(100))
    tasks.claim_messages(consumer, "first is good")
    check_consumer(consumer)
    assert alarms(consumer)["many_dead_letters"].startswith(f"topic {second.name}: ")
    send(second, *good(45, 200))
    tasks.claim_messages(consumer, "second is good")
    check_consumer(consumer)
    assert "many_dead_letters" not in alarms(consumer)
    assert events(consumer)[2:] == [("closed", first.name), ("closed", second.name)]


def test_a_topic_below_the_limit_keeps_no_alarm_of_another_topic_open(make_topic, make_consumer, send):
    broken, so_so = make_topic(partitions=1), make_topic(partitions=1)
    consumer = make_consumer(broken, so_so)
    send(so_so, *(b"junk" if n % 5 < 2 else order(n) for n in range(50)))
    send(broken, *junk(10))
    tasks.claim_messages(consumer, "first")
    assert so_so.name not in alarms(consumer)["many_dead_letters"]
    send(broken, *good(30, 100))
    tasks.claim_messages(consumer, "second")
    check_consumer(consumer)
    assert "many_dead_letters" not in alarms(consumer)


def test_three_old_dead_letters_in_a_row_open_the_alarm_of_a_quiet_topic(make_topic, make_consumer, send):
    quiet, busy = make_topic(partitions=3), make_topic(partitions=1)
    consumer = make_consumer(quiet, busy)
    send(quiet, *good(2))
    send(busy, *good(100, 100))
    tasks.claim_messages(consumer, "good")
    for day in range(3):
        assert "many_dead_letters" not in alarms(consumer)
        let_days_pass(consumer, 2)
        send(quiet, b"junk", partition=day)
        tasks.claim_messages(consumer, f"day {day}")
    alarm = alarms(consumer)["many_dead_letters"]
    assert f"topic {quiet.name}: 3 of the last 3 messages (100 %) are dead letters" in alarm
    let_days_pass(consumer, 30)
    send(busy, *good(1, 300))
    tasks.claim_messages(consumer, "only the other topic")
    check_consumer(consumer)
    assert "many_dead_letters" in alarms(consumer)
    send(quiet, *good(1, 400), partition=1)
    tasks.claim_messages(consumer, "good again")
    check_consumer(consumer)
    assert "many_dead_letters" not in alarms(consumer)


def test_a_few_dead_letters_of_a_run_with_valid_messages_open_no_alarm(make_topic, make_consumer, send):
    """A run records its dead letters last, whatever their offsets: within a run, the order of rows proves nothing."""
    topic = make_topic(partitions=3)
    consumer = make_consumer(topic)
    for partition in range(3):
        send(topic, *good(2, 10 * partition), b"junk", partition=partition)
    tasks.claim_messages(consumer, "run")
    check_consumer(consumer)
    assert "many_dead_letters" not in alarms(consumer)
    send(topic, *good(40, 100))
    tasks.claim_messages(consumer, "busy")
    send(topic, *junk(3))
    tasks.claim_messages(consumer, "three neighbours")
    check_consumer(consumer)
    assert "many_dead_letters" not in alarms(consumer)


def test_a_failing_effect_hides_dead_letters_only_for_a_while(make_topic, make_consumer, send):
    topic = make_topic(partitions=1)
    consumer = make_consumer(topic)
    send(topic, order("fails", -2), *junk(3))
    tasks.claim_messages(consumer, "may be good")
    assert open_claims(consumer) == 1
    assert "many_dead_letters" not in alarms(consumer)
    send(topic, *junk(3))
    tasks.claim_messages(consumer, "broken")
    assert "many_dead_letters" in alarms(consumer)


def test_on_a_quiet_topic_a_message_that_waits_for_its_run_counts_as_valid(make_topic, make_consumer, send):
    topic = make_topic(partitions=1)
    consumer = make_consumer(topic, shape=Shape.per_message)
    send(topic, *good(1), *junk(3))
    (key,) = tasks.claim_partition_keys(consumer, "fan out")
    assert "many_dead_letters" not in alarms(consumer)
    tasks.handle_message(consumer, key, "its run")
    send(topic, *junk(3))
    tasks.claim_partition_keys(consumer, "all broken")
    assert "of the last 6 messages" in alarms(consumer)["many_dead_letters"]


def test_the_alarm_of_a_topic_that_is_no_longer_read_closes(make_topic, make_consumer, send):
    left, kept = make_topic(partitions=1), make_topic(partitions=1)
    consumer = make_consumer(left, kept)
    send(left, *junk(5))
    tasks.claim_messages(consumer, "run")
    assert "many_dead_letters" in alarms(consumer)
    check_consumer(replace(consumer, topics=(kept,)))
    assert "many_dead_letters" not in alarms(consumer)


def test_the_latest_messages_are_found_by_the_primary_key(make_topic, make_consumer):
    quiet, busy = make_topic(), make_topic()
    consumer = make_consumer(quiet, busy)
    fill = text(
        """
        insert into inbox (consumer, topic_id, partition, "offset", topic, contract, event_id, outcome, run_id,
            recorded_at)
        select :consumer, :topic, n % 3, n / 3, :topic, 'Order', :topic || n, 'handled', 'run',
            now() - make_interval(days => :days, secs => 30000 - n)
        from generate_series(0, 30000) n
        """
    )
    with begin() as connection:
        connection.execute(text("insert into consumers values (:name)"), {"name": consumer.name})
        for topic, days in ((quiet.name, 5), (busy.name, 0)):
            connection.execute(fill, {"consumer": consumer.name, "topic": topic, "days": days})
            place = "insert into positions select :consumer, :topic, n, :topic, 10000 from generate_series(0, 2) n"
            connection.execute(text(place), {"consumer": consumer.name, "topic": topic})
    for is_analyzed in (False, True):
        if is_analyzed:
            with begin() as connection:
                connection.execute(text("analyze inbox"))
        with begin() as connection:
            explain = text(f"explain (analyze, format json) {broken_contracts._LATEST.text}")
            topics = [topic.name for topic in consumer.topics]
            given = {"consumer": consumer.name, "topics": topics, "latest": 200, "of_a_partition": 5, "framed": "x"}
            (plan,) = connection.execute(explain, given).scalar_one()
        (node,) = (node for node in nodes(plan["Plan"]) if node.get("Relation Name") == "inbox")
        assert node["Index Name"] == "pk_inbox"
        # Only the rows within the limit of each of the six partitions are read.
        assert node["Actual Loops"] * node["Actual Rows"] == 6 * 66
        assert not node.get("Rows Removed by Filter")


def nodes(plan: dict) -> Iterator[dict]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)
