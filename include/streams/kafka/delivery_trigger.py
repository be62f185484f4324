"""Start the Dag `deliver_outbox` when rows of the outbox are due."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import AssetWatcher
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from include.streams.compat.triggerer import hand_over_events

log = logging.getLogger(__name__)

# Between two queries of the database. With 1 s, an alarm reaches its webhook in about 2 s.
INTERVAL_SECONDS = 1.0
# Between two events while rows stay due: the Dag is paused, or its run has not started yet.
BACKOFF_FIRST_SECONDS, BACKOFF_LAST_SECONDS = 5.0, 60.0
# Between two queries while the database is unavailable.
AWAY_SECONDS = 10.0


class OutboxDueTrigger(BaseEventTrigger):
    """Fire while the outbox has due rows that no process is delivering.

    Level-triggered: a lost or coalesced event does no harm. A route is not due while a process delivers it or while it
    backs off, so an unavailable receiver starts at most one run per minute.

    Args:
        interval: The seconds between two queries of the database.
    """

    def __init__(self, *, interval: float = INTERVAL_SECONDS) -> None:
        super().__init__()
        self.interval = interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "include.streams.kafka.delivery_trigger.OutboxDueTrigger", {"interval": self.interval}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield an event whenever a run should deliver rows; never ends by itself."""
        # Imported here: a Dag file that names this trigger must not load SQLAlchemy.
        from include.streams.operations import outbox_delivery

        is_away, next_fire, wait = False, 0.0, BACKOFF_FIRST_SECONDS
        while True:
            try:
                # In a thread: the call blocks, and the triggerer has one event loop.
                routes = await asyncio.to_thread(outbox_delivery.due_routes)
            except Exception as error:
                if not is_away:
                    log.warning("cannot query the outbox, trying again until it works: %s", error)
                is_away = True
                await asyncio.sleep(AWAY_SECONDS)
                continue
            if is_away:
                log.warning("the operational database is back")
                is_away = False
            if not routes:
                next_fire, wait = 0.0, BACKOFF_FIRST_SECONDS
            elif time.monotonic() >= next_fire:
                log.info("outbox: %d routes are due, starting a run", len(routes))
                next_fire, wait = time.monotonic() + wait, min(2 * wait, BACKOFF_LAST_SECONDS)
                yield TriggerEvent({"routes": len(routes)})
                hand_over_events()
            await asyncio.sleep(self.interval)


def outbox_watcher() -> AssetWatcher:
    """The watcher that starts the Dag `deliver_outbox`."""
    return AssetWatcher(name="outbox", trigger=OutboxDueTrigger())
