"""Every consumer is maintained."""

from include.streams.kafka.consumers import Consumer
from include.streams.landing.consumers import LandingConsumer
from include.water import consumers


def test_every_declared_consumer_is_maintained():
    for kind, listed in ((Consumer, consumers.CONSUMERS), (LandingConsumer, consumers.LANDING_CONSUMERS)):
        declared = {value.name for value in vars(consumers).values() if isinstance(value, kind)}
        assert {consumer.name for consumer in listed} == declared
