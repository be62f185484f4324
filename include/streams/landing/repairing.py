"""The task `repair_gaps`, which runs before the plan: read offsets of the next claim from Kafka that the sink has lost.

The plan claims each partition up to its first gap, whether or not this task has run. So if the process is killed in
this task, or between it and the plan, nothing is lost: repaired records are in the table, and the next try repairs the
rest. `repair.py` says what happens if two tries run at once.
"""

import logging

from include.streams.kafka.claims import ConsumerStopped
from include.streams.landing.broken_files import read_with_repair
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.positions import has_claim, stopped_failure
from include.streams.landing.repair import Repaired, repair
from include.streams.landing.verification import verify_next_claim
from include.streams.landing.xcom import RepairedGaps
from include.streams.operations.database import begin

log = logging.getLogger(__name__)


def repair_gaps(consumer: LandingConsumer, run_id: str) -> RepairedGaps:
    """Repair the gaps that are due in the offsets that the consumer's next claim can take.

    A run that already has a claim, because it is retried or was cleared, keeps its ranges, so nothing is checked.

    Args:
        consumer: The landing consumer.
        run_id: The Dag run.

    Returns:
        How many of the missing offsets had which outcome.

    Raises:
        AirflowFailException: The topic was recreated. Other exceptions are for Airflow's retries.
    """
    with begin() as connection:
        if has_claim(connection, consumer, run_id):
            return _counts(Repaired())
    try:
        repaired = read_with_repair(consumer.topic, lambda: _repair(consumer), conn_id=consumer.conn_id)
    except ConsumerStopped as stopped:
        raise stopped_failure(consumer, stopped) from stopped
    log.info("gaps: consumer=%s run_id=%s %s", consumer.name, run_id, repaired)
    return _counts(repaired)


def _repair(consumer: LandingConsumer) -> Repaired:
    due = verify_next_claim(consumer).due
    if not due:
        return Repaired()
    repaired = repair(consumer.topic, due, conn_id=consumer.conn_id)
    # Deletes the repaired offsets from the recorded missing offsets, and closes the alarm.
    verify_next_claim(consumer)
    return repaired


def _counts(repaired: Repaired) -> RepairedGaps:
    return {"appended": repaired.appended, "without_record": repaired.without_record, "lost": repaired.lost}
