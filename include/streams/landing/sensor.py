"""Wait for landed offsets without occupying a worker."""

import time
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator

from include.streams.landing.consumers import LandingConsumer


class LandedOffsetsSensor(BaseSensorOperator):
    """Succeeds when a run of this consumer has work; skips the run after `idle_minutes` without new data.

    A run has work when no claim of another run is open, and there are landed offsets that are not claimed, or a gap
    that is due for repair. A run that already has a claim, because it was cleared, continues at once. If there is work
    at the start, the task does not defer. Otherwise it waits in the triggerer, and ends there.

    The skip is needed in a Dag with `max_active_runs=1`: a cleared run stays queued until this run ends.

    Args:
        consumer: The landing consumer.
        idle_minutes: The run is skipped after this time without new data.
        poll_seconds: The time between two checks in the triggerer.
        **kwargs: Passed on to BaseSensorOperator.
    """

    def __init__(
        self, *, consumer: LandingConsumer, idle_minutes: float = 10, poll_seconds: float = 3, **kwargs: Any
    ) -> None:
        # Airflow counts the wait as execution, so a shorter timeout would fail an idle run.
        longest = timedelta(minutes=idle_minutes + 10)
        super().__init__(**{**kwargs, "execution_timeout": max(longest, kwargs.get("execution_timeout") or longest)})
        self.consumer, self.idle_minutes, self.poll_seconds = consumer, idle_minutes, poll_seconds

    def execute(self, context: Any) -> None:
        from include.streams.landing.readiness import Lane, Readiness, check_readiness
        from include.streams.landing.triggers import LandedOffsetsTrigger

        until = time.time() + 60 * self.idle_minutes
        landed = self.consumer.topic.landed
        lane = Lane(
            name=self.consumer.name,
            topic_name=self.consumer.topic.name,
            run_id=context["run_id"],
            conn_id=self.consumer.conn_id,
            landing_grace_seconds=self.consumer.landing_grace.total_seconds(),
            max_claim_age_seconds=self.consumer.max_claim_age.total_seconds(),
            objects=None if isinstance(landed, bool) else landed.as_json(),
        )
        try:
            # Without the check for gaps, which queries Kafka: the trigger makes it while the run waits.
            readiness = check_readiness(lane, verify_too=False)
        except Exception as error:
            # The trigger waits until the service is available again, and takes no slot while it waits.
            self.log.warning("lane=%s cannot be checked, waiting: %s", lane.name, error)
        else:
            if readiness is Readiness.ready:
                return
            self.log.info("lane=%s waiting: %s", lane.name, readiness)
        trigger = LandedOffsetsTrigger.of(lane, until=until, poll_seconds=self.poll_seconds)
        self.defer(trigger=trigger, method_name="execute_complete")

    def execute_complete(self, context: Any, event: Any = None) -> None:
        """The method with which a deferred task would resume. It is never called: the trigger's event ends the task.

        Args:
            context: Airflow's context.
            event: The trigger's event.
        """
