"""Who reads which topic, in one place."""

from include.kafka.consumers import Consumer
from include.water.topics import LEAKS_DETECTED, SEISMIC_EVENTS

RAISE_ALERTS = Consumer(
    name="raise_alerts",
    topics=(SEISMIC_EVENTS, LEAKS_DETECTED),
    effect="include.water.alerts.effect:raise_alert",
)
