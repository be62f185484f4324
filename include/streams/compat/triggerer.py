"""Store an event of a trigger at once, instead of at the triggerer's next tick."""

import asyncio
import logging
import sys
from typing import Any

log = logging.getLogger(__name__)

# Tasks in progress. Kept here, because the event loop keeps only weak references to tasks.
_in_progress: set[asyncio.Task] = set()
# Whether this process has logged the reason for which events are not handed over. Logged once: a trigger yields many
# events.
_is_logged = False


def hand_over_events() -> bool:
    """Make the triggerer store the yielded events now.

    Airflow's trigger runner collects events and hands them to its supervisor once a second, so an event waits half a
    second on average. This is longer than all other steps between a message and its task together, and Airflow has no
    public way to shorten it. At each tick the runner calls `TriggerRunner.sync_state_to_supervisor`. This method can be
    called at any time on the runner's event loop: requests to the supervisor have ids, and the work that the answer
    requests is queued for the next tick. So this function calls it once, before the tick.

    The call runs in a separate asyncio task. If it were canceled together with a trigger, the answer would be lost, and
    with it the triggers that it requests to start.

    Call this in a trigger, after a yield. If the runner is not found (as in tests) or has changed (in another version
    of Airflow), the event waits for the tick. In the second case the reason is logged once.

    Returns:
        Whether the hand-over has started. It raises nothing, because the caller treats every error as an outage of the
        broker.
    """
    try:
        runner = _trigger_runner()
        if runner is None:
            if "airflow.jobs.triggerer_job_runner" in sys.modules:
                _log_once("no TriggerRunner.run_trigger was found above the trigger")
            return False
        task = asyncio.get_running_loop().create_task(runner.sync_state_to_supervisor([]))
    except Exception as error:
        _log_once(f"TriggerRunner.sync_state_to_supervisor: {type(error).__name__}: {error}")
        return False
    _in_progress.add(task)
    task.add_done_callback(_done)
    return True


def _trigger_runner() -> Any:
    """The runner whose coroutine `run_trigger` iterates over the calling trigger; None when it is not found."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "run_trigger":
            return frame.f_locals.get("self")
        frame = frame.f_back
    return None


def _done(task: asyncio.Task) -> None:
    _in_progress.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        _log_once(f"TriggerRunner.sync_state_to_supervisor: {type(error).__name__}: {error}")


def _log_once(reason: str) -> None:
    global _is_logged
    if _is_logged:
        return
    _is_logged = True
    log.warning(
        "events are not handed over at once: each waits for the triggerer's next tick (half a second): %s. This uses "
        "private parts of Airflow, see include/streams/compat/__init__.py; nothing is lost",
        reason,
    )
