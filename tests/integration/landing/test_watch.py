"""A lane is checked from outside, because no task of it runs while its Dag is paused or its run is retried."""

from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.sdk.exceptions import AirflowNotFoundException
from sqlalchemy import text

from include.streams.kafka.watch import CheckFailed
from include.streams.lake.catalog import forget_catalogs
from include.streams.landing import gaps, index
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.gaps import State
from include.streams.landing.planning import claim_landed
from include.streams.landing.tables import load_landing_table, topic_id
from include.streams.landing.watch import check_consumer, check_consumers
from include.streams.operations.database import begin
from tests.integration.landing.conftest import alarms_of, finish, land

pytestmark = pytest.mark.integration

DAY = timedelta(days=1)


@pytest.fixture
def orders(landed_topic, send_orders):
    """A topic with 30 messages in its only partition."""
    topic = landed_topic(partitions=1)
    send_orders(topic, 0, 30)
    return topic


@pytest.fixture
def without_catalog(monkeypatch):
    """A deployment that has no landing tables."""
    with monkeypatch.context() as patch:
        patch.delenv("AIRFLOW_CONN_LANDING_CATALOG")
        forget_catalogs()
        yield
    forget_catalogs()


def open_alarms(consumer: LandingConsumer) -> set[str]:
    return {kind for kind, (_, is_open) in alarms_of(consumer.name).items() if is_open}


def hours_pass(consumer: LandingConsumer, hours: int) -> None:
    older = text("update log_ends set seen_at = seen_at - make_interval(hours => :hours) where consumer = :name")
    with begin() as connection:
        connection.execute(older, {"hours": hours, "name": consumer.name})


def test_offsets_that_wait_too_long_for_a_claim_open_an_alarm(orders, lane):
    paused = lane(orders)
    land(orders, 0, range(10))
    assert check_consumer(paused).behind == {orders.name: 10}
    assert open_alarms(paused) == set()
    hours_pass(paused, 3)
    land(orders, 0, range(10, 20))
    check_consumer(paused)
    assert open_alarms(paused) == {"age"}
    assert "paused" in alarms_of(paused.name)["age"][0]
    # The lane runs again: the next check closes the alarm, not the claim.
    finish(claim_landed(paused, "run"))
    assert check_consumer(paused).behind == {orders.name: 0}
    assert open_alarms(paused) == set()


def test_lag_above_the_limit_opens_an_alarm_at_once(orders, lane):
    slow = lane(orders, max_lag=15, max_messages_per_claim=5)
    land(orders, 0, range(20))
    check_consumer(slow)
    assert open_alarms(slow) == {"lag"}
    # A claim reads only the offsets that it takes, so it does not close the alarm about the lag.
    finish(claim_landed(slow, "run"))
    assert open_alarms(slow) == {"lag"}
    assert check_consumer(slow).behind == {orders.name: 15}


def test_a_claim_that_stays_open_opens_an_alarm_without_a_sensor(orders, lane):
    failing = lane(orders, max_claim_age=timedelta())
    land(orders, 0, range(10))
    units = claim_landed(failing, "failing")
    # An alarm that the claim itself has opened would not cover hours of retries.
    with begin() as connection:
        connection.execute(text("delete from alarms where source = :name"), {"name": failing.name})
    check_consumer(failing)
    assert open_alarms(failing) == {"claim_open"}
    finish(units)
    check_consumer(failing)
    assert open_alarms(failing) == set()


def test_an_idle_lane_raises_no_alarm_however_long_it_is_idle(orders, lane):
    idle = lane(orders)
    land(orders, 0, range(10))
    finish(claim_landed(idle, "run"))
    # Offsets without a record at the end are claimed beyond the last file.
    gaps.record_outcome(orders.name, topic_id(load_landing_table(orders)), 0, State.no_record, [(10, 12)])
    land(orders, 0, [12])
    finish(claim_landed(idle, "next"))
    for _ in range(3):
        assert check_consumer(idle).behind == {orders.name: 0}
        hours_pass(idle, 24)
    # The next message has not waited for a day.
    land(orders, 0, [13])
    check_consumer(idle)
    assert open_alarms(idle) == set()


def test_a_topic_without_a_landing_table_has_no_lag(landing_services, make_topic, lane, send_orders):
    # The messages are in Kafka, the topic has landed=True, and there is no connector.
    topic = make_topic(partitions=1, landed=True)
    send_orders(topic, 0, 5)
    unused = lane(topic, max_lag=1)
    for _ in range(2):
        assert check_consumer(unused).waiting == {}
        hours_pass(unused, 24)
    assert open_alarms(unused) == set()


def test_a_deployment_without_a_catalog_passes_if_nothing_was_claimed(orders, lane, without_catalog):
    assert check_consumer(lane(orders)).behind == {orders.name: 0}


def test_a_missing_catalog_fails_the_check_of_a_lane_that_has_claimed(orders, lane, request):
    used, other = lane(orders, max_claim_age=timedelta()), lane(orders, max_lag=1)
    land(orders, 0, range(10))
    claim_landed(used, "run")
    check_consumers([other])
    assert open_alarms(other) == {"lag"}
    request.getfixturevalue("without_catalog")
    with pytest.raises(AirflowNotFoundException):
        check_consumer(used)
    # The claim is still checked, and so are the other consumers.
    late = lane(orders)
    with pytest.raises(CheckFailed, match=used.name):
        check_consumers([used, late])
    assert "claim_open" in open_alarms(used)


def test_a_check_opens_no_data_file(orders, lane, monkeypatch):
    land(orders, 0, [*range(0, 30, 2)])
    monkeypatch.setattr(index, "offset_column", lambda *_: pytest.fail("a file was read"))
    assert check_consumer(lane(orders)).behind == {orders.name: 29}
