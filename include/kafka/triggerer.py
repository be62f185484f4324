"""Spare an event the wait for the triggerer's next tick."""

import asyncio
import logging
import sys
from typing import Any

log = logging.getLogger(__name__)

# The event loop keeps only weak references to tasks.
_under_way: set[asyncio.Task] = set()


def hand_over_events() -> bool:
    """Let the triggerer store the events that were yielded now; True when it does.

    Airflow's trigger runner collects events and hands them to its supervisor once a second, so an event waits half a
    second on average: more than everything else between a message and its task together. It has no public way to be
    quicker. What it does at a tick, `TriggerRunner.sync_state_to_supervisor`, can be done at any time on its event
    loop (requests to the supervisor carry ids, and what the answer asks for is queued for the next tick); so this
    does it once, early. In a task of its own: cancelled half-way, together with a trigger, it would lose the answer,
    and with it triggers that were to be started.

    Call it in a trigger, after a yield. Where the runner is not found, as in tests or in an Airflow that is built
    otherwise, nothing happens and the event waits for the tick.
    """
    runner = _trigger_runner()
    if runner is None:
        return False
    task = asyncio.get_running_loop().create_task(runner.sync_state_to_supervisor([]))
    _under_way.add(task)
    task.add_done_callback(_done)
    return True


def _trigger_runner() -> Any:
    """The runner whose coroutine `run_trigger` iterates over the trigger that calls us."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "run_trigger":
            runner = frame.f_locals.get("self")
            return runner if hasattr(runner, "sync_state_to_supervisor") else None
        frame = frame.f_back
    return None


def _done(task: asyncio.Task) -> None:
    _under_way.discard(task)
    if not task.cancelled() and task.exception() is not None:
        log.warning("events were not handed over early, they wait for the next tick: %s", task.exception())
