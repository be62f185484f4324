"""Work that consists of several things: one that fails keeps no other from its turn, and is named at the end."""

import logging
import random
from collections.abc import Callable, Mapping
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


def do_each(work: Mapping[str, Callable[[], T]], failed: type[Exception]) -> dict[str, T]:
    """Do each thing, also after another one failed.

    What is no `Exception` ends all of it at once, such as Airflow's timeout of a task, or a person who interrupts: it
    comes only once, and the task would go on without a limit.

    Args:
        work: {name, for the log and the error: what to do}.
        failed: The class of the error.

    Returns:
        {name: its result}.

    Raises:
        failed: Some failed; the text names each, and why. All others are done.
    """
    done: dict[str, T] = {}
    failures: list[str] = []
    for name, do in work.items():
        try:
            done[name] = do()
        except Exception as error:
            log.exception("failed, the others go on: %s", name)
            failures.append(f"{name}: {error}")
    if failures:
        log.info("done all the same: %s", done)
        raise failed("; ".join(sorted(failures)))
    return done


def shuffled(work: Mapping[str, T]) -> dict[str, T]:
    """The same in another order each time.

    One of them may take all the time of the task: those behind it would never have their turn.
    """
    return {name: work[name] for name in random.sample(list(work), len(work))}
