"""The end of a run: check that its counts balance, then close its claim."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from include.streams.kafka.claims import mark_handled
from include.streams.kafka.offsets import OffsetRange
from include.streams.lake import engine
from include.streams.lake.catalog import load_catalog
from include.streams.landing import dead_letters, intervals, staging
from include.streams.landing.broken_contracts import watch_broken_contracts
from include.streams.landing.broken_files import read_with_repair
from include.streams.landing.clean import as_parts, count_of, replaceable
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.planning import without_record
from include.streams.landing.positions import claim_of
from include.streams.landing.tables import clean_table, load_landing_table, topic_id
from include.streams.landing.xcom import FinishedRun, RunSummary
from include.streams.operations import metrics
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_alarm, open_alarm
from include.streams.operations.database import begin
from include.streams.operations.tables import Outcome

log = logging.getLogger(__name__)


class DoesNotBalance(AirflowFailException):
    """Input and output counts of a run differ. Not retried: a retry would count the same rows."""


def finish(consumer: LandingConsumer, summary: RunSummary, run_id: str) -> FinishedRun:
    """Check that landed = clean + dead-lettered + duplicates + not wanted, then close the run's claim.

    The landed, clean and dead-lettered records are counted again, in the tables and the database. The run's own numbers
    must equal these counts. If the process is killed before the claim is closed, the retry repeats everything. If it is
    killed afterwards, only staging files are left, which maintenance removes.

    Args:
        consumer: The landing consumer.
        summary: The run's summary, as `commit_clean` returned it.
        run_id: The Dag run.

    Returns:
        The metadata of the asset event.

    Raises:
        DoesNotBalance: The counts differ. The claim stays open, and no new claim is made until a person clears the run.
    """
    claim_id, ranges = claim_of(consumer, run_id)
    # The summary of the release before does not count them.
    summary = {**summary, "not_wanted": summary.get("not_wanted", 0)}
    counts = read_with_repair(consumer.topic, lambda: _counted(consumer, ranges), conn_id=consumer.conn_id)
    trouble = _trouble(counts, summary, sum(map(len, ranges)))
    table = load_landing_table(consumer.topic)
    with begin() as connection:
        if trouble:
            text = (
                f"claim {claim_id} (run {run_id}) does not balance: {'; '.join(trouble)}. Nothing is deleted, and "
                "nothing new is claimed until a person clears this run, from its first task on"
            )
            open_alarm(connection, consumer.name, AlarmKind.run_does_not_balance, text)
        else:
            close_alarm(connection, consumer.name, AlarmKind.run_does_not_balance)
            # Messages that are not wanted do not count: many of them would hide a large share of dead letters.
            wanted = counts["landed"] - summary["not_wanted"]
            watch_broken_contracts(connection, consumer, topic_id(table), claim_id, ranges, wanted)
            for part in ranges:
                mark_handled(connection, claim_id, part)
    if trouble:
        raise DoesNotBalance(f"consumer {consumer.name}: {text}")
    counted = {
        Outcome.handled: summary["clean"],
        Outcome.dead_letter: summary["dead_lettered"],
        Outcome.duplicate: summary["duplicates"],
        Outcome.not_wanted: summary["not_wanted"],
    }
    for outcome, number in counted.items():
        metrics.MESSAGES.add(number, consumer.name, consumer.topic.name, outcome)
    staging.remove(table.io, staging.folder(consumer, claim_id, table.location()))
    metadata: FinishedRun = {
        "ranges": as_parts(ranges),
        "landed": summary["landed"],
        "clean": summary["clean"],
        "dead_lettered": summary["dead_lettered"],
        "duplicates": summary["duplicates"],
        "not_wanted": summary["not_wanted"],
    }
    log.info("finished: consumer=%s run_id=%s claim=%d %s", consumer.name, run_id, claim_id, metadata)
    return metadata


def _counted(consumer: LandingConsumer, ranges: Sequence[OffsetRange]) -> dict[str, int]:
    empty = without_record(consumer, ranges)
    clean = load_catalog().load_table(clean_table(consumer.topic))
    with engine.connect() as connection:
        return {
            # How many records the claim's ranges hold, according to Kafka and the manifests.
            "landed": sum(map(len, ranges)) - sum(map(intervals.total, empty.values())),
            "clean": count_of(connection, clean, replaceable(consumer, ranges)),
            "dead_lettered": dead_letters.count(consumer, ranges, empty),
        }


def _trouble(counts: Mapping[str, int], summary: Mapping[str, Any], offsets: int) -> list[str]:
    """The counts that differ, as texts for people."""
    trouble = [
        f"the run counted {name} = {summary[name]}, and there are {number}"
        for name, number in counts.items()
        if summary[name] != number
    ]
    accounted = counts["clean"] + counts["dead_lettered"] + summary["duplicates"] + summary["not_wanted"]
    if counts["landed"] != accounted:
        trouble.append(
            f"{counts['landed']} landed, and {counts['clean']} clean + {counts['dead_lettered']} dead letters + "
            f"{summary['duplicates']} duplicates + {summary['not_wanted']} not wanted = {accounted}"
        )
    if offsets != counts["landed"] + summary["without_record"]:
        trouble.append(
            f"{offsets} offsets, and {counts['landed']} landed + {summary['without_record']} without a record"
        )
    return trouble
