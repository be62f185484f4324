"""What the Dag of a landing consumer calls, task by task; its file stays wiring, and imports nothing heavy.

units = plan(CONSUMER, run_id)
validate(CONSUMER, unit, run_id)          # mapped
summary = commit(CONSUMER, counts, run_id)
check(CONSUMER, summary)
metadata = close(CONSUMER, summary, run_id)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from include.landing.consumers import LandingConsumer


def plan(consumer: LandingConsumer, run_id: str) -> list[dict[str, Any]]:
    """Claim what has landed; returns the run's units of work. Skips the run when there is nothing to do."""
    from airflow.sdk.exceptions import AirflowSkipException

    from include.landing.planning import claim_landed

    units = claim_landed(consumer, run_id)
    if not units:
        raise AirflowSkipException("nothing has landed that this run could claim")
    return units


def validate(consumer: LandingConsumer, unit: dict[str, Any], run_id: str) -> dict[str, Any]:
    """Validate one unit; returns its staging files and counts."""
    from include.landing.validation import validate_unit

    return validate_unit(consumer, unit, run_id)


def commit(consumer: LandingConsumer, units: Iterable[Mapping[str, Any]], run_id: str) -> dict[str, Any]:
    """Put the run's rows into the clean table, each event once; returns the run's summary."""
    from include.landing.clean import commit_clean

    return commit_clean(consumer, units, run_id)


def check(consumer: LandingConsumer, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Check the run's rows as a whole by the consumer's suite. Raises SetsFailed."""
    from include.validators.sets import check_sets

    return check_sets(consumer, summary)


def close(consumer: LandingConsumer, summary: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    """Check that the run balances, and close its claim; returns the metadata of the asset. Raises DoesNotBalance."""
    from include.landing.balance import finish

    return finish(consumer, summary, run_id)
