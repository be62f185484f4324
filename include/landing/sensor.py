"""Wait for landed offsets without a worker."""

import time
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator

from include.landing.consumers import LandingConsumer


class LandedOffsetsSensor(BaseSensorOperator):
    """Succeeds when a run of this consumer has something to do; skips its run after `idle_minutes` without.

    Something to do: landed offsets that nobody has claimed, or a gap that is due for repair; and no claim of another
    run is open. A run that has a claim already, because it was cleared, goes on at once. If it is so at the start, the
    task does not defer at all; else it waits in the triggerer, and ends there.

    Skipping matters in a Dag with one active run: a run that was cleared waits in the queue until this one ends.
    """

    def __init__(
        self, *, consumer: LandingConsumer, idle_minutes: float = 10, poll_seconds: float = 3, **kwargs: Any
    ) -> None:
        # Airflow counts the wait as execution: a shorter timeout would fail a run that only has nothing to do.
        longest = timedelta(minutes=idle_minutes + 10)
        super().__init__(**{**kwargs, "execution_timeout": max(longest, kwargs.get("execution_timeout") or longest)})
        self.consumer, self.idle_minutes, self.poll_seconds = consumer, idle_minutes, poll_seconds

    def execute(self, context: Any) -> None:
        from include.landing.readiness import Lane, Readiness, look
        from include.landing.triggers import LandedOffsetsTrigger

        until = time.time() + 60 * self.idle_minutes
        lane = Lane(
            name=self.consumer.name,
            topic_name=self.consumer.topic.name,
            run_id=context["run_id"],
            conn_id=self.consumer.conn_id,
            landing_grace_seconds=self.consumer.landing_grace.total_seconds(),
            max_claim_age_seconds=self.consumer.max_claim_age.total_seconds(),
        )
        try:
            # Without asking Kafka: the trigger does that when there is nothing else to do.
            found = look(lane, verify_too=False)
        except Exception as error:
            # The trigger waits for whatever is away, and takes no slot while it does.
            self.log.warning("lane=%s cannot look, waiting: %s", lane.name, error)
        else:
            if found is Readiness.ready:
                return
            self.log.info("lane=%s waiting: %s", lane.name, found)
        trigger = LandedOffsetsTrigger.of(lane, until=until, poll_seconds=self.poll_seconds)
        self.defer(trigger=trigger, method_name="execute_complete")

    def execute_complete(self, context: Any, event: Any = None) -> None:
        """Where a deferred task would go on; the trigger's events end it without a worker."""
