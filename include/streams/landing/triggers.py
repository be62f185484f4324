"""The trigger of `LandedOffsetsSensor`."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from airflow.triggers.base import BaseTrigger, TaskSkippedEvent, TaskSuccessEvent, TriggerEvent

from include.streams.compat.triggerer import hand_over_events
from include.streams.lake.catalog import forget_catalogs
from include.streams.landing.readiness import Lane, Readiness, check_readiness

log = logging.getLogger(__name__)

# The pauses while the catalog, the store or the databases are unavailable.
AWAY_FIRST_SECONDS, AWAY_LAST_SECONDS = 5.0, 60.0
# The time between two checks for gaps, which query Kafka. Gaps have a grace period of minutes, so this is often enough.
VERIFY_SECONDS = 60.0
# PyIceberg blocks. A separate small pool, so that checks that hang do not use up the threads of other triggers.
_threads = ThreadPoolExecutor(4, thread_name_prefix="landed-offsets")


class LandedOffsetsTrigger(BaseTrigger):
    """Ends the sensor's task: as successful when its run has work, as skipped after `until` (epoch seconds).

    Every check reads the present state of the databases and the table, so a triggerer that is killed or replaced loses
    nothing. The event ends the task, so no worker is needed at the end.

    Args:
        lane: A `Lane` as a dictionary.
        until: When to skip, in epoch seconds.
        poll_seconds: The time between two checks.
    """

    def __init__(self, *, lane: dict[str, Any], until: float, poll_seconds: float) -> None:
        super().__init__()
        self.lane, self.until, self.poll_seconds = lane, until, poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        kwargs = {"lane": self.lane, "until": self.until, "poll_seconds": self.poll_seconds}
        return "include.streams.landing.triggers.LandedOffsetsTrigger", kwargs

    @classmethod
    def of(cls, lane: Lane, **kwargs: float) -> "LandedOffsetsTrigger":
        """The trigger for a lane; `kwargs` are `until` and `poll_seconds`."""
        return cls(lane=asdict(lane), **kwargs)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        lane = Lane(**self.lane)
        loop = asyncio.get_running_loop()
        pause = AWAY_FIRST_SECONDS
        logged: Readiness | None = None
        verified_at = -VERIFY_SECONDS
        while True:
            wait = self.poll_seconds
            try:
                verify_too = time.monotonic() - verified_at >= VERIFY_SECONDS
                readiness = await loop.run_in_executor(
                    _threads, lambda due=verify_too: check_readiness(lane, verify_too=due)
                )
                if verify_too:
                    verified_at = time.monotonic()
            except Exception as error:
                # Logged once per outage. Failing the task would only start it again, and it would wait here again.
                if pause == AWAY_FIRST_SECONDS:
                    log.warning("lane=%s cannot be checked, trying again until it can: %s", lane.name, error)
                forget_catalogs()
                wait, pause = pause, min(2 * pause, AWAY_LAST_SECONDS)
            else:
                if pause > AWAY_FIRST_SECONDS:
                    log.warning("lane=%s can be checked again", lane.name)
                    pause = AWAY_FIRST_SECONDS
                if readiness is Readiness.ready:
                    yield TaskSuccessEvent()
                    hand_over_events()
                    return
                if readiness is Readiness.stopped:
                    # Only a person can change this, and each check queries Kafka.
                    wait = max(wait, VERIFY_SECONDS)
                if readiness is not logged:
                    log.info("lane=%s waiting: %s", lane.name, readiness)
                    logged = readiness
            left = self.until - time.time()
            if left <= 0:
                log.info("lane=%s has no work: the run ends, so that a cleared run can start", lane.name)
                yield TaskSkippedEvent()
                hand_over_events()
                return
            await asyncio.sleep(min(wait, left))
