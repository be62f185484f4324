"""The default arguments of tasks, in one place for all Dags."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from include.streams.operations.heartbeats import REPORTED

# The team that a Dag belongs to unless it says otherwise.
OWNER = "data-platform"


def task_defaults(
    execution_timeout: timedelta, *, owner: str = OWNER, reported: bool = True, **changes: Any
) -> dict[str, Any]:
    """Make the `default_args` of a Dag: an owner, a timeout, retries, and an alarm when the retries are used up.

    Args:
        execution_timeout: The longest time for one try of a task.
        owner: The team that an alarm goes to.
        reported: Whether a failed task opens the alarm `dag_failed`. False for a Dag that owns a claim: a failed run
            leaves its claim open, and another alarm reports that.
        changes: Further arguments of Airflow's tasks, such as `retries`, `retry_delay` or `max_retry_delay`. The
            default is three retries after about 30 s, 1 min and 2 min.

    Returns:
        The arguments for `default_args`.
    """
    return {
        "owner": owner,
        "execution_timeout": execution_timeout,
        "retries": 3,
        "retry_delay": timedelta(seconds=30),
        "retry_exponential_backoff": 2,
        **(REPORTED if reported else {}),
        **changes,
    }
