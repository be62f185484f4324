"""Spare an event the wait for the triggerer's next tick."""

import asyncio
import logging
import sys
from typing import Any

log = logging.getLogger(__name__)

# The event loop keeps only weak references to tasks.
_under_way: set[asyncio.Task] = set()
# Whether this process has logged that the runner is not the known one: a trigger yields many events.
_said = False


def hand_over_events() -> bool:
    """Let the triggerer store the events that were yielded now.

    Airflow's trigger runner collects events and hands them to its supervisor once a second, so an event waits half a
    second on average: more than everything else between a message and its task together. It has no public way to be
    quicker. What it does at a tick, `TriggerRunner.sync_state_to_supervisor`, can be done at any time on its event
    loop (requests to the supervisor carry ids, and what the answer asks for is queued for the next tick); so this
    does it once, early. In a task of its own: cancelled half-way, together with a trigger, it would lose the answer,
    and with it triggers that were to be started.

    Call it in a trigger, after a yield. Where the runner is not found, as in tests, or is not the known one, as in
    another version of Airflow, the event waits for the tick, and the reason is logged once.

    Returns:
        Whether the hand-over has begun. Nothing is raised: the caller would take it for an outage of the broker.
    """
    try:
        runner = _trigger_runner()
        if runner is None:
            if "airflow.jobs.triggerer_job_runner" in sys.modules:
                _say("no TriggerRunner.run_trigger was found above the trigger")
            return False
        task = asyncio.get_running_loop().create_task(runner.sync_state_to_supervisor([]))
    except Exception as error:
        _say(f"TriggerRunner.sync_state_to_supervisor: {type(error).__name__}: {error}")
        return False
    _under_way.add(task)
    task.add_done_callback(_done)
    return True


def _trigger_runner() -> Any:
    """The runner whose coroutine `run_trigger` iterates over the trigger that calls us."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "run_trigger":
            return frame.f_locals.get("self")
        frame = frame.f_back
    return None


def _done(task: asyncio.Task) -> None:
    _under_way.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        _say(f"TriggerRunner.sync_state_to_supervisor: {type(error).__name__}: {error}")


def _say(reason: str) -> None:
    global _said
    if _said:
        return
    _said = True
    log.warning(
        "events are not handed over early, each waits for the triggerer's next tick (half a second): %s. This uses "
        "private parts of Airflow, see include/compat/__init__.py; nothing is lost",
        reason,
    )
