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
# How often Kafka is queried as well. That is often enough, because gaps have a grace period of minutes.
VERIFY_SECONDS = 60.0
# PyIceberg blocks. A small pool of its own: checks that hang must not take the threads of other triggers.
_threads = ThreadPoolExecutor(4, thread_name_prefix="landed-offsets")


class LandedOffsetsTrigger(BaseTrigger):
    """Ends the sensor's task: successfully when its run has something to do, as skipped after `until` (epoch seconds).

    Level-triggered: every check starts from the state of the databases and the table, so a triggerer that is killed or
    replaced loses nothing. The event ends the task, so no worker is needed at the end.

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
        return cls(lane=asdict(lane), **kwargs)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        lane = Lane(**self.lane)
        loop = asyncio.get_running_loop()
        away = AWAY_FIRST_SECONDS
        said: Readiness | None = None
        verified_at = -VERIFY_SECONDS
        while True:
            wait = self.poll_seconds
            try:
                verify_too = time.monotonic() - verified_at >= VERIFY_SECONDS
                found = await loop.run_in_executor(
                    _threads, lambda due=verify_too: check_readiness(lane, verify_too=due)
                )
                if verify_too:
                    verified_at = time.monotonic()
            except Exception as error:
                # Logged once per outage. A failed task would only have to start again and wait here again.
                if away == AWAY_FIRST_SECONDS:
                    log.warning("lane=%s cannot look, trying again until it works: %s", lane.name, error)
                forget_catalogs()
                wait, away = away, min(2 * away, AWAY_LAST_SECONDS)
            else:
                if away > AWAY_FIRST_SECONDS:
                    log.warning("lane=%s can look again", lane.name)
                    away = AWAY_FIRST_SECONDS
                if found is Readiness.ready:
                    yield TaskSuccessEvent()
                    hand_over_events()
                    return
                if found is Readiness.stopped:
                    # Only a person can change this, and each look asks Kafka.
                    wait = max(wait, VERIFY_SECONDS)
                if found is not said:
                    log.info("lane=%s waiting: %s", lane.name, found)
                    said = found
            left = self.until - time.time()
            if left <= 0:
                log.info("lane=%s nothing to do: the run ends, so that one that was cleared gets its turn", lane.name)
                yield TaskSkippedEvent()
                hand_over_events()
                return
            await asyncio.sleep(min(wait, left))
