"""Which consumer reads which topic, in one place."""

from include.streams import Consumer, LandingConsumer, Shape
from include.water.topics import LEAKS_DETECTED, METER_READINGS, SEISMIC_EVENTS, SERVICE_REQUESTS

RAISE_ALERTS = Consumer(
    name="raise_alerts",
    topics=(SEISMIC_EVENTS, LEAKS_DETECTED),
    effect="include.water.alerts.effect:raise_alert",
    # The effect takes about 2 ms, so a chunk takes about 4 s: much longer than its task needs to start.
    chunk_size=2_000,
)

TRIAGE_SERVICE_REQUESTS = Consumer(
    name="triage_service_requests",
    topics=(SERVICE_REQUESTS,),
    shape=Shape.per_message,
    prepare="include.water.triage.engine:propose",
    effect="include.water.triage.effect:record_decision",
    # Each message becomes a Dag run. A machine processes this many in about a minute.
    max_messages_per_claim=200,
    chunk_size=200,
    # One Dag run per message allows only a few runs per second: a topic with a larger lag needs another pattern.
    max_lag=2_000,
)

# The standard lane: it reads landed files, not the topic.
AGGREGATE_METER_READINGS = LandingConsumer(
    name="aggregate_meter_readings",
    topic=METER_READINGS,
    suite="include.water.suites:meter_readings",
)

# All consumers of each lane. The Dag `maintain` looks after these and no others.
CONSUMERS = (RAISE_ALERTS, TRIAGE_SERVICE_REQUESTS)
LANDING_CONSUMERS = (AGGREGATE_METER_READINGS,)
