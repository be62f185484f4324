"""The functions that the Dag of a landing consumer calls, one for each task.

The Dag file only connects them, and imports nothing heavy. `xcom.py` has the types of their results.

repair_gaps(CONSUMER, run_id)
units = plan(CONSUMER, run_id)
validate(CONSUMER, unit, run_id)          # mapped
summary = commit(CONSUMER, results, run_id)
check(CONSUMER, summary)
metadata = close(CONSUMER, summary, run_id)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from include.streams.landing.consumers import LandingConsumer

if TYPE_CHECKING:
    from include.streams.landing.xcom import FinishedRun, RepairedGaps, RunSummary, ValidatedUnit, WorkUnit
    from include.streams.validators.sets import CheckedSet


def repair_gaps(consumer: LandingConsumer, run_id: str) -> RepairedGaps:
    """Read from Kafka the offsets that the sink has lost, as far as the run can claim them.

    Without this task, the lane would stop at the first gap, because the plan never claims past a gap.

    Args:
        consumer: The landing consumer.
        run_id: The Dag run.

    Returns:
        Counts of the offsets that were settled.
    """
    from include.streams.landing.repairing import repair_gaps

    return repair_gaps(consumer, run_id)


def plan(consumer: LandingConsumer, run_id: str) -> list[WorkUnit]:
    """Claim landed offsets for a run.

    Args:
        consumer: The landing consumer.
        run_id: The Dag run.

    Returns:
        The run's units of work, one for each mapped task.

    Raises:
        AirflowSkipException: There is nothing to claim.
    """
    from airflow.sdk.exceptions import AirflowSkipException

    from include.streams.landing.planning import claim_landed

    units = claim_landed(consumer, run_id)
    if not units:
        raise AirflowSkipException("nothing has landed that this run could claim")
    return units


def validate(consumer: LandingConsumer, unit: WorkUnit, run_id: str) -> ValidatedUnit:
    """Validate one unit.

    Args:
        consumer: The landing consumer.
        unit: One of the units that `plan` returned.
        run_id: The Dag run.

    Returns:
        The unit's staging files and counts.
    """
    from include.streams.landing.validation import validate_unit

    return validate_unit(consumer, unit, run_id)


def commit(consumer: LandingConsumer, results: Iterable[ValidatedUnit], run_id: str) -> RunSummary:
    """Commit the run's rows to the clean table, each event once.

    Args:
        consumer: The landing consumer.
        results: The results of `validate`, one for each unit.
        run_id: The Dag run.

    Returns:
        The run's summary.
    """
    from include.streams.landing.clean import commit_clean

    return commit_clean(consumer, results, run_id)


def check(consumer: LandingConsumer, summary: RunSummary) -> CheckedSet:
    """Check the run's rows as a whole with the consumer's suite.

    Args:
        consumer: The landing consumer.
        summary: The run's summary.

    Returns:
        The suite's result.

    Raises:
        SetsFailed: A rule is broken.
    """
    from include.streams.validators.sets import check_sets

    return check_sets(consumer, summary)


def close(consumer: LandingConsumer, summary: RunSummary, run_id: str) -> FinishedRun:
    """Check that the run's counts balance, and close its claim.

    Args:
        consumer: The landing consumer.
        summary: The run's summary.
        run_id: The Dag run.

    Returns:
        The metadata of the asset event.

    Raises:
        DoesNotBalance: The counts differ.
    """
    from include.streams.landing.balance import finish

    return finish(consumer, summary, run_id)
