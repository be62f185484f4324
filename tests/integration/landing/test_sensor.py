"""The sensor succeeds when its run has work, otherwise waits in the triggerer, and skips its run after a while."""

import asyncio
import json
import threading
import time
from datetime import timedelta
from typing import cast

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.triggers.base import TaskSkippedEvent, TaskSuccessEvent
from sqlalchemy import text

from include.streams.kafka.offsets import GroupOffsets, Partition
from include.streams.kafka.reset import reset_consumer
from include.streams.landing import triggers
from include.streams.landing.planning import claim_landed
from include.streams.landing.readiness import Lane, Readiness, check_readiness
from include.streams.landing.sensor import LandedOffsetsSensor
from include.streams.landing.triggers import LandedOffsetsTrigger
from include.streams.landing.verification import verify
from include.streams.operations.database import begin
from tests.integration.landing.conftest import alarms_of, finish, land, plan_run, sink_commits
from tests.integration.landing.test_gaps import make_again
from tests.integration.landing.test_generations import a_later_leader_knows_nothing_of_it, a_new_landing_table
from tests.integration.landing.test_many_holes import waiting

pytestmark = pytest.mark.integration


def lane_of(consumer, run_id: str = "run") -> Lane:
    trigger = deferred(LandedOffsetsSensor(task_id="wait", consumer=consumer), run_id)
    assert trigger is not None
    return Lane(**trigger.lane)


def deferred(sensor: LandedOffsetsSensor, run_id: str = "run") -> LandedOffsetsTrigger | None:
    """The trigger to which the sensor defers; None when it succeeds at once."""
    try:
        sensor.execute({"run_id": run_id})
    except TaskDeferred as deferral:
        return cast(LandedOffsetsTrigger, deferral.trigger)
    return None


def events_of(trigger: LandedOffsetsTrigger, meanwhile=lambda: None) -> list:
    """All events of the trigger; `meanwhile` runs on the event loop's thread after the first check has begun."""

    async def collect() -> list:
        asyncio.get_running_loop().call_soon(meanwhile)
        return [event async for event in trigger.run()]

    return asyncio.run(asyncio.wait_for(collect(), 60))


@pytest.fixture
def orders(landed_topic, send_orders):
    topic = landed_topic(partitions=1)
    send_orders(topic, 0, 30)
    return topic


def test_a_sensor_with_data_at_the_start_does_not_defer(orders, lane):
    land(orders, 0, range(5))
    assert deferred(LandedOffsetsSensor(task_id="wait", consumer=lane(orders))) is None


def test_a_sensor_without_data_defers_to_a_serializable_trigger(orders, lane):
    trigger = deferred(LandedOffsetsSensor(task_id="wait", consumer=lane(orders), idle_minutes=5))
    path, kwargs = trigger.serialize()
    assert path == f"{LandedOffsetsTrigger.__module__}.{LandedOffsetsTrigger.__name__}"
    again = LandedOffsetsTrigger(**json.loads(json.dumps(kwargs)))
    assert (again.lane, again.until, again.poll_seconds) == (trigger.lane, trigger.until, trigger.poll_seconds)
    # The wait must not count as a hanging task, for any default timeout of the Dag.
    sensor = LandedOffsetsSensor(
        task_id="wait", consumer=lane(orders), idle_minutes=30, execution_timeout=timedelta(minutes=1)
    )
    assert sensor.execution_timeout > timedelta(minutes=30)


def test_the_trigger_ends_the_task_when_data_lands(orders, lane):
    trigger = LandedOffsetsTrigger.of(lane_of(lane(orders)), until=time.time() + 60, poll_seconds=0.05)
    (event,) = events_of(trigger, meanwhile=lambda: land(orders, 0, range(5)))
    assert isinstance(event, TaskSuccessEvent)


def test_a_run_without_data_is_skipped(orders, lane):
    (event,) = events_of(LandedOffsetsTrigger.of(lane_of(lane(orders)), until=time.time(), poll_seconds=1))
    assert isinstance(event, TaskSkippedEvent)


def test_a_gap_at_the_beginning_is_no_work_during_its_grace_period(orders, lane):
    land(orders, 0, range(10, 20))
    patient = lane_of(lane(orders, landing_grace=timedelta(hours=1)))
    assert check_readiness(patient) is Readiness.no_data
    assert (
        check_readiness(lane_of(lane(orders, landing_grace=timedelta(hours=1))), verify_too=False) is Readiness.no_data
    )
    # When the gap is due, the run starts and repairs it.
    due = Lane(**{**vars(patient), "landing_grace_seconds": 0.0})
    assert check_readiness(due) is Readiness.ready


def test_a_lane_whose_last_files_were_lost_does_not_wait_forever(orders, lane):
    consumer = lane(orders)
    sink_commits(orders, _0=30)
    trigger = deferred(LandedOffsetsSensor(task_id="wait", consumer=consumer))
    (event,) = events_of(trigger)
    assert isinstance(event, TaskSuccessEvent)
    assert len(plan_run(consumer, "run")) == 1
    assert verify(orders).missing == ()


def test_a_sensor_waits_while_another_claim_is_open_with_an_alarm(orders, lane):
    consumer = lane(orders, max_claim_age=timedelta())
    land(orders, 0, range(5))
    units = claim_landed(consumer, "failed")
    land(orders, 0, range(5, 10))
    other = lane_of(consumer, "other")
    assert check_readiness(other) is Readiness.open_claim
    message, is_open = alarms_of(consumer.name)["claim_open"]
    assert is_open
    assert "run failed" in message
    # The run that owns the claim continues at once when it is cleared.
    assert deferred(LandedOffsetsSensor(task_id="wait", consumer=consumer), "failed") is None
    finish(units)
    assert check_readiness(other) is Readiness.ready


def test_a_cleared_run_continues_even_if_everything_is_claimed(orders, lane):
    consumer = lane(orders)
    land(orders, 0, range(5))
    finish(claim_landed(consumer, "done"))
    assert deferred(LandedOffsetsSensor(task_id="wait", consumer=consumer), "done") is None
    assert deferred(LandedOffsetsSensor(task_id="wait", consumer=consumer), "new") is not None


def test_an_outage_is_logged_once_and_waited_out(orders, lane, monkeypatch, caplog):
    monkeypatch.setattr(triggers, "AWAY_FIRST_SECONDS", 0.01)
    answers = iter([ConnectionError("the catalog is away"), ConnectionError("still away"), Readiness.ready])

    def answer(*_, **__):
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(triggers, "check_readiness", answer)
    trigger = LandedOffsetsTrigger.of(lane_of(lane(orders)), until=time.time() + 60, poll_seconds=0.01)
    (event,) = events_of(trigger)
    assert isinstance(event, TaskSuccessEvent)
    warnings = [record.message for record in caplog.records if record.name == triggers.__name__]
    assert [message for message in warnings if "away" in message] == [
        f"lane={trigger.lane['name']} cannot be checked, trying again until it can: the catalog is away"
    ]


def test_a_task_that_cannot_check_waits_in_the_triggerer(orders, lane, monkeypatch):
    def away(*_, **__):
        raise ConnectionError("the catalog is away")

    monkeypatch.setattr("include.streams.landing.readiness.check_readiness", away)
    assert deferred(LandedOffsetsSensor(task_id="wait", consumer=lane(orders))) is not None


def test_a_check_that_hangs_does_not_block_the_event_loop(orders, lane, monkeypatch):
    lane_asked = lane_of(lane(orders))
    goes_on = threading.Event()

    def hang(*_, **__):
        # Set by the event loop, which would not be possible if this check blocked the loop.
        assert goes_on.wait(30)
        return Readiness.ready

    monkeypatch.setattr(triggers, "check_readiness", hang)
    trigger = LandedOffsetsTrigger.of(lane_asked, until=time.time() + 60, poll_seconds=1)
    (event,) = events_of(trigger, meanwhile=goes_on.set)
    assert isinstance(event, TaskSuccessEvent)


@pytest.fixture
def made_again(orders, lane, admin, make_topic, send_orders):
    """A lane that has claimed ten offsets of a topic that was then deleted, recreated and filled again."""
    consumer = lane(orders)
    land(orders, 0, range(0, 10))
    finish(claim_landed(consumer, "first"))
    make_again(admin, make_topic, orders)
    send_orders(orders, 0, 30)
    return consumer


def test_an_idle_lane_of_a_recreated_topic_alarms_at_the_first_check(made_again):
    assert check_readiness(waiting(made_again)) is Readiness.stopped
    message, is_open = alarms_of(made_again.name)["consumer_stopped"]
    assert is_open
    assert "deleted and recreated" in message
    assert f"python -m include.streams.kafka reset {made_again.name}" in message


def test_no_run_starts_for_landed_offsets_of_a_recreated_topic(made_again):
    land(made_again.topic, 0, range(10, 20))
    assert check_readiness(waiting(made_again), verify_too=False) is Readiness.stopped
    assert alarms_of(made_again.name)["consumer_stopped"][1]
    # A cleared run fails with the reason.
    assert deferred(LandedOffsetsSensor(task_id="wait", consumer=made_again), "first") is None


def test_no_run_starts_between_the_new_table_and_the_reset(made_again):
    a_new_landing_table(made_again.topic)
    land(made_again.topic, 0, range(0, 5))
    assert check_readiness(waiting(made_again), verify_too=False) is Readiness.stopped
    reset_consumer(made_again.name, made_again.topic.name)
    assert check_readiness(waiting(made_again), verify_too=False) is Readiness.ready
    assert not alarms_of(made_again.name)["consumer_stopped"][1]


def test_no_run_starts_for_a_truncated_log(orders, lane):
    consumer = lane(orders)
    land(orders, 0, range(0, 10))
    finish(claim_landed(consumer, "first"))
    land(orders, 0, range(10, 20))
    a_later_leader_knows_nothing_of_it(consumer)
    assert check_readiness(waiting(consumer), verify_too=False) is Readiness.stopped
    assert f"the log of topic {consumer.topic.name} was truncated" in alarms_of(consumer.name)["consumer_stopped"][0]


def test_a_truncated_partition_stops_no_other(landed_topic, send_orders, lane):
    topic = landed_topic(partitions=2)
    for partition in (0, 1):
        send_orders(topic, partition, 20)
    consumer = lane(topic)
    land(topic, 0, range(10))
    finish(claim_landed(consumer, "first"))
    land(topic, 0, range(10, 20))
    a_later_leader_knows_nothing_of_it(consumer)
    # The trigger continues to check every few seconds.
    assert check_readiness(waiting(consumer), verify_too=False) is Readiness.partly_stopped
    assert f"the log of topic {consumer.topic.name} was truncated" in alarms_of(consumer.name)["consumer_stopped"][0]
    land(topic, 1, range(5))
    assert check_readiness(waiting(consumer), verify_too=False) is Readiness.ready


def test_a_further_truncated_partition_is_added_to_the_open_alarm(landed_topic, send_orders, lane):
    topic = landed_topic(partitions=2)
    consumer = lane(topic)
    for partition in (0, 1):
        send_orders(topic, partition, 20)
        land(topic, partition, range(10))
    finish(claim_landed(consumer, "first"))
    of_a_later_leader = text("update positions set leader_epoch = 1000 where consumer = :name and partition = :number")
    for partition in (0, 1):
        land(topic, partition, range(10, 20))
        with begin() as connection:
            connection.execute(of_a_later_leader, {"name": consumer.name, "number": partition})
        # Twice: the alarm names each partition once.
        for _ in range(2):
            check_readiness(waiting(consumer), verify_too=False)
        message = alarms_of(consumer.name)["consumer_stopped"][0]
        assert [message.count(f"of partition {number} were claimed") for number in (0, 1)] == [1, partition]


def test_no_run_starts_for_landed_offsets_of_a_deleted_topic(orders, lane, admin):
    land(orders, 0, range(10))
    for future in admin.delete_topics([orders.name], operation_timeout=30).values():
        future.result(30)
    assert check_readiness(waiting(lane(orders)), verify_too=False) is Readiness.unanswered


def test_no_run_starts_for_landed_offsets_of_a_partition_without_a_leader(landed_topic, send_orders, lane, monkeypatch):
    topic = landed_topic(partitions=2)
    for partition in (0, 1):
        send_orders(topic, partition, 10)
    land(topic, 0, range(10))
    consumer = lane(topic)
    actually = GroupOffsets.fetch_offsets_sync

    def without_0(self, *args, **kwargs):
        return {p: offsets for p, offsets in actually(self, *args, **kwargs).items() if p != Partition(topic.name, 0)}

    with monkeypatch.context() as patch:
        patch.setattr(GroupOffsets, "fetch_offsets_sync", without_0)
        assert check_readiness(waiting(consumer), verify_too=False) is Readiness.unanswered
        assert check_readiness(waiting(consumer)) is Readiness.unanswered
        land(topic, 1, range(5))
        assert check_readiness(waiting(consumer), verify_too=False) is Readiness.ready
        finish(claim_landed(consumer, "of the other partition"))
        assert check_readiness(waiting(consumer), verify_too=False) is Readiness.unanswered
    assert check_readiness(waiting(consumer), verify_too=False) is Readiness.ready
    assert "consumer_stopped" not in alarms_of(consumer.name)


def test_kafka_is_queried_only_when_there_seems_to_be_work(orders, lane, monkeypatch):
    consumer = lane(orders)
    with monkeypatch.context() as patch:
        patch.setattr(GroupOffsets, "fetch_offsets_sync", lambda *_, **__: pytest.fail("Kafka was asked"))
        assert check_readiness(waiting(consumer), verify_too=False) is Readiness.no_data
    land(orders, 0, range(5))
    assert check_readiness(waiting(consumer), verify_too=False) is Readiness.ready


def test_a_stopped_lane_queries_kafka_once_a_minute(orders, lane, monkeypatch):
    lane_asked = lane_of(lane(orders))
    answers = iter([Readiness.stopped, Readiness.unanswered, Readiness.ready])
    monkeypatch.setattr(triggers, "check_readiness", lambda *_, **__: next(answers))
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(triggers.asyncio, "sleep", sleep)
    (event,) = events_of(LandedOffsetsTrigger.of(lane_asked, until=time.time() + 600, poll_seconds=1))
    assert isinstance(event, TaskSuccessEvent)
    assert waits == [triggers.VERIFY_SECONDS, 1]
