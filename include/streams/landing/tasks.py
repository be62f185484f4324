"""The functions that the Dag of a landing consumer calls, one for each task.

The Dag file only wires them together, and imports nothing heavy.

units = plan(CONSUMER, run_id)
validate(CONSUMER, unit, run_id)          # mapped
summary = commit(CONSUMER, counts, run_id)
check(CONSUMER, summary)
metadata = close(CONSUMER, summary, run_id)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from include.streams.landing.consumers import LandingConsumer


def plan(consumer: LandingConsumer, run_id: str) -> list[dict[str, Any]]:
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


def validate(consumer: LandingConsumer, unit: dict[str, Any], run_id: str) -> dict[str, Any]:
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


def commit(consumer: LandingConsumer, units: Iterable[Mapping[str, Any]], run_id: str) -> dict[str, Any]:
    """Commit the run's rows to the clean table, each event once.

    Args:
        consumer: The landing consumer.
        units: The results of `validate`, one for each unit.
        run_id: The Dag run.

    Returns:
        The run's summary.
    """
    from include.streams.landing.clean import commit_clean

    return commit_clean(consumer, units, run_id)


def check(consumer: LandingConsumer, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Check the run's rows as a whole with the consumer's suite.

    Args:
        consumer: The landing consumer.
        summary: The run's summary.

    Returns:
        The summary, with what the check found.

    Raises:
        SetsFailed: A rule is broken.
    """
    from include.streams.validators.sets import check_sets

    return check_sets(consumer, summary)


def close(consumer: LandingConsumer, summary: Mapping[str, Any], run_id: str) -> dict[str, Any]:
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
