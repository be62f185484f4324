"""Every consumer is looked after."""

from include.kafka.consumers import Consumer
from include.water import consumers


def test_every_declared_consumer_is_among_those_that_maintain_looks_after():
    declared = {value.name for value in vars(consumers).values() if isinstance(value, Consumer)}
    assert {consumer.name for consumer in consumers.CONSUMERS} == declared
