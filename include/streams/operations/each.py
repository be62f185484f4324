"""Run several independent actions: if one fails, the others still run, and an error at the end names the failed one."""

import logging
import random
from collections.abc import Callable, Mapping
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


def do_each(work: Mapping[str, Callable[[], T]], failed: type[Exception]) -> dict[str, T]:
    """Run every action, even if another action failed.

    Only an `Exception` is caught. Airflow's timeout of a task, or a person's interrupt, ends all actions at once: it is
    raised only once, so the task would then run without a limit.

    Args:
        work: {name, for the log and the error: action}.
        failed: The class of the error.

    Returns:
        {name: result of the action}.

    Raises:
        failed: Some actions failed; the text names each of them with its error. All others have run.
    """
    done: dict[str, T] = {}
    failures: list[str] = []
    for name, action in work.items():
        try:
            done[name] = action()
        except Exception as error:
            log.exception("failed, the others still run: %s", name)
            failures.append(f"{name}: {error}")
    if failures:
        log.info("results of the others: %s", done)
        raise failed("; ".join(sorted(failures)))
    return done


def shuffled(work: Mapping[str, T]) -> dict[str, T]:
    """The same actions in a random order.

    One action may use up the task's whole time. In a fixed order, the actions after it would never run.
    """
    return {name: work[name] for name in random.sample(list(work), len(work))}
