"""A log that lost its end below offsets that have landed and are not claimed: the records there are not those of Kafka.

The broker is stopped, and the files of its logs are cut, as an unclean leader election would do it.
"""

import pytest
from airflow.sdk.exceptions import AirflowFailException
from sqlalchemy import update

from include.streams.kafka.reset import reset_consumer
from include.streams.landing.planning import claim_landed
from include.streams.landing.readiness import Readiness, check_readiness
from include.streams.landing.tables import raw_table
from include.streams.landing.upkeep import check_gaps
from include.streams.landing.verification import verify
from include.streams.operations.database import begin
from include.streams.operations.tables import alarms
from tests.integration.kafka.conftest import cut, order
from tests.integration.kafka.test_lost_log_ends import one_by_one
from tests.integration.landing.conftest import alarms_of, finish, sink_commits
from tests.integration.landing.test_generations import a_new_landing_table
from tests.integration.landing.test_run import clean_rows, land, run
from tests.integration.landing.test_sensor import lane_of

pytestmark = pytest.mark.integration
__all__ = ["cut", "one_by_one"]

OLD, NEW = ([order(f"{age} {n}") for n in range(8)] for age in ("old", "new"))


def stopped(source: str) -> str:
    """The text of the open alarm."""
    text, is_open = alarms_of(source)["consumer_stopped"]
    assert is_open
    return text


def test_landed_records_are_not_confused_with_later_ones_of_a_truncated_log(landed_topic, lane, one_by_one, cut):
    short, refilled, kept = landed_topic(partitions=2), landed_topic(partitions=1), landed_topic(partitions=1)
    lanes = {topic: lane(topic, max_messages_per_claim=4) for topic in (short, refilled, kept)}
    for topic, consumer in lanes.items():
        one_by_one(topic, *OLD)
        land(topic, 0, 0, *OLD)
        assert run(consumer, "first")["clean"] == 4
    idle = lane(short)
    finish(claim_landed(idle, "first"))
    cut((short, 0, 6), (refilled, 0, 6))
    one_by_one(refilled, *NEW)

    # A new leader alone is no loss.
    one_by_one(kept, order("after"))
    land(kept, 0, 8, order("after"))
    assert [run(lanes[kept], run_id)["clean"] for run_id in ("second", "third")] == [4, 1]
    assert alarms_of(lanes[kept].name) == {}

    # The log is as long as before, and the epoch of its leader shows the loss.
    consumer = lanes[refilled]
    with pytest.raises(AirflowFailException, match="was truncated and filled again"):
        claim_landed(consumer, "second")
    assert f"offsets up to 8 of partition 0 had landed in {raw_table(refilled)}" in stopped(consumer.name)
    assert check_readiness(lane_of(consumer)) is Readiness.stopped

    # The end of the log shows the loss before any run starts.
    consumer = lanes[short]
    assert check_readiness(lane_of(consumer)) is Readiness.partly_stopped
    assert f"offsets up to 8 of partition 0 are in landing table {raw_table(short)}" in stopped(consumer.name)
    assert check_readiness(lane_of(idle)) is Readiness.partly_stopped, "the alarm opens before more lands"
    # Other partitions continue.
    one_by_one(short, order("beside"), partition=1)
    land(short, 1, 0, order("beside"))
    (part,) = run(consumer, "second")["ranges"]
    assert (part["partition"], part["start"], part["end"]) == (1, 0, 1)
    # The broker's log is filled again, and the sink lands new records at the same offsets.
    one_by_one(short, *NEW)
    land(short, 0, 6, *NEW[:4])
    sink_commits(short, _0=14, _1=1)
    with pytest.raises(AirflowFailException, match="was truncated and filled again"):
        claim_landed(consumer, "third")
    assert verify(short).due == (), "Kafka has other records there"
    assert not check_gaps(short)
    assert "landing-gap.md" in stopped(raw_table(short))

    # The remedy of the runbook.
    a_new_landing_table(short)
    reset_consumer(consumer.name, short.name)
    sink_commits(short, _0=14, _1=1)
    assert sum(run(consumer, f"after {n}")["clean"] for n in range(4)) == 15
    events = sorted(event for _, _, event in clean_rows(short))
    assert events == sorted([*(f"old {n}" for n in range(6)), *(f"new {n}" for n in range(8)), "beside"])
    assert not alarms_of(consumer.name)["consumer_stopped"][1]
    with begin() as connection:
        # Alarms that the release before opened have no key.
        connection.execute(update(alarms).where(alarms.c.source == raw_table(short)).values(key=""))
    assert check_gaps(short)
    assert not alarms_of(raw_table(short))["consumer_stopped"][1]
