"""Sends messages like those of samples, so that `make demo` runs with topics that have no simulator of their own.

Each message is a sample with an id that no other message has. Some are repeated, and some break the contract.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, cycle
from pathlib import Path
from typing import Any

from include.streams.contracts import At, ContractViolation, FromHeader, Topic
from include.streams.kafka.producer import AcknowledgedProducer, DeliveryFailed, Headers
from include.streams.kafka.sending import Outgoing, Value, encoded, values_in

log = logging.getLogger(__name__)

# Messages per second.
RATE = 2.0
# A restarted producer sends an event again: consumers must act on it once.
REPEAT_EVERY = 25
# Of each topic: values that are no JSON, and samples without id.
PLANTED = 2
TICK_SECONDS = 0.1
REPORT_EVERY_SECONDS = 1.0
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True, kw_only=True)
class SampledTraffic:
    """The messages of a topic.

    Attributes:
        topic: The topic.
        samples: A file in the format that `make send` takes.
        identified_by: Where a message has its id.
        rate: Messages per second.
    """

    topic: Topic
    samples: Path
    identified_by: At | FromHeader
    rate: float = RATE

    def messages(self, seed: str | None = None) -> Iterator[Outgoing]:
        """The samples in turn without end, each time with a new id.

        Args:
            seed: Of the ids; by default others in each process.

        Yields:
            A message that keeps the topic's contract.

        Raises:
            ValueError: No new id could be made that the contract takes. Write a simulator of your own.
        """
        samples = values_in(self.samples.read_bytes())
        # Not for secrets: ids that differ.
        some = random.Random(seed or f"{time.time_ns()} {os.getpid()}")
        start = time.time_ns() // 1_000_000
        for number, sample in zip(count(start), cycle(samples), strict=False):
            yield self._renamed(sample, number, some)

    def broken(self) -> list[Outgoing]:
        """Messages that break the contract: each becomes a dead letter."""
        sample = values_in(self.samples.read_bytes())[0]
        return [
            Outgoing(Value(b"not JSON", 0), sample.key, list(sample.headers)),
            self._with_id(sample, None),
        ]

    def _renamed(self, sample: Value, number: int, some: random.Random) -> Outgoing:
        old = self._id(sample)
        for new in _new_ids(old, number, some):
            message = self._with_id(sample, new)
            try:
                event = self.topic.parse_text(message.value.data, message.headers)
            except ContractViolation:
                continue
            key = sample.key if self.topic.key is None else str(getattr(event, self.topic.key)).encode()
            return Outgoing(message.value, key, message.headers)
        raise ValueError(
            f"topic {self.topic.name}: its contract takes none of the new ids that were made for the sample at line "
            f"{sample.line}; change the samples, or write a simulator of your own (Demo.simulators)"
        )

    def _id(self, sample: Value) -> Any:
        if isinstance(self.identified_by, FromHeader):
            value = dict(sample.headers).get(self.identified_by.name)
            return None if value is None else value.decode()
        node = json.loads(sample.data or b"null")
        for name in self.identified_by.names:
            node = node.get(name) if isinstance(node, dict) else None
        return node

    def _with_id(self, sample: Value, new: Any) -> Outgoing:
        """The sample with another id; with None, without."""
        if isinstance(self.identified_by, FromHeader):
            others: Headers = [header for header in sample.headers if header[0] != self.identified_by.name]
            own: Headers = [] if new is None else [(self.identified_by.name, str(new).encode())]
            return Outgoing(sample, sample.key, [*others, *own])
        document = json.loads(sample.data or b"{}")
        node, *path = (document, *self.identified_by.names)
        for name in path[:-1]:
            node = node[name]
        node[path[-1]] = new
        if new is None:
            del node[path[-1]]
        value = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        return Outgoing(replace(sample, data=value), sample.key, list(sample.headers))


def _new_ids(old: Any, number: int, some: random.Random) -> Iterator[Any]:
    """Ids like the old one, the likeliest first."""
    if isinstance(old, int):
        yield number
        # Within the bounds of a contract that takes no such numbers.
        yield from (some.randrange(10**digits) for digits in (15, 12, 9, 6))
        return
    if _UUID.fullmatch(str(old)):
        yield str(uuid.UUID(int=some.getrandbits(128), version=4))
    like = "".join(_like(character, some) for character in str(old))
    if sum(character.isalnum() for character in like) >= 16:
        yield like
    yield f"{old}-{number:x}"
    yield from ("".join(_like(character, some) for character in str(old)) for _ in range(20))


def _like(character: str, some: random.Random) -> str:
    # Letters stay, as they often mean something: "SR-00012345".
    return some.choice("0123456789") if character.isdecimal() else character


@dataclass
class _Stream:
    """One topic's messages. Each producer counts what is acknowledged."""

    traffic: SampledTraffic
    make_producer: Callable[[], AcknowledgedProducer]
    sent: int = 0
    producer: AcknowledgedProducer = field(init=False)
    planter: AcknowledgedProducer = field(init=False)

    def __post_init__(self) -> None:
        self.producer, self.planter = self.make_producer(), self.make_producer()
        self.messages = self.traffic.messages()
        self.planned = self.traffic.broken()

    def send_due(self, elapsed: float, share: float) -> None:
        """Send what is due by now.

        Args:
            elapsed: Seconds since the start.
            share: Which part of the time is over; broken messages are spread over the first half.
        """
        while self.sent < int(elapsed * self.traffic.rate):
            message = next(self.messages)
            self.sent += 1
            for _ in range(1 + (self.sent % REPEAT_EVERY == 0)):
                self._send(self.producer, message)
        while self.planned and 2 * share >= 1 - len(self.planned) / (PLANTED + 1):
            self._send(self.planter, self.planned.pop(0))

    def _send(self, producer: AcknowledgedProducer, message: Outgoing) -> None:
        # A broken message may not fit the schema: it is sent as it is.
        message = encoded(self.traffic.topic, message, is_checked=producer is self.producer)
        producer.send(self.traffic.topic.name, key=message.key, value=message.value.data, headers=message.headers)


def run(
    traffic: Sequence[SampledTraffic],
    seconds: float,
    report: Path,
    *,
    stop: threading.Event | None = None,
    make_producer: Callable[[], AcknowledgedProducer] = AcknowledgedProducer,
) -> bool:
    """Send for some seconds, and keep a report of what the broker has acknowledged.

    Args:
        traffic: The topics.
        seconds: How long to send.
        report: The report's file, replaced every second, and once more at the end with "finished": true.
        stop: Set it to end early.
        make_producer: Creates a producer.

    Returns:
        False if the broker did not acknowledge everything.
    """
    stop = stop or threading.Event()
    streams = [_Stream(each, make_producer) for each in traffic]
    start = reported = time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds and not stop.wait(TICK_SECONDS):
        for stream in streams:
            stream.send_due(elapsed, elapsed / seconds)
        if time.monotonic() - reported > REPORT_EVERY_SECONDS:
            _write(streams, report, finished=False)
            reported = time.monotonic()
    for stream in streams:
        # A message that was slow to send may have taken the rest of the time.
        stream.send_due(0, 1)
    complete = all([_flush(producer) for stream in streams for producer in (stream.producer, stream.planter)])
    _write(streams, report, finished=True)
    return complete


def _flush(producer: AcknowledgedProducer) -> bool:
    try:
        producer.flush()
    except DeliveryFailed as error:
        log.error("%s", error)
        return False
    return True


def _write(streams: Sequence[_Stream], report: Path, *, finished: bool) -> None:
    document = {
        "sent": {stream.traffic.topic.name: stream.producer.acknowledged for stream in streams},
        "planted_bad": {stream.traffic.topic.name: stream.planter.acknowledged for stream in streams},
        "finished": finished,
    }
    unfinished = report.with_name(f".{report.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(document, indent=2) + "\n")
    # A reader never sees half a report.
    unfinished.replace(report)


def main(traffic: Sequence[SampledTraffic], arguments: list[str] | None = None) -> int:
    """The command `run` that `Demo.simulators` needs.

    Args:
        traffic: The topics.
        arguments: The command line; by default the process's own.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description="Send messages like those of the samples to Kafka.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("run", help="send until the time is over, or until SIGTERM or SIGINT")
    command.add_argument("--for", dest="seconds", type=float, required=True, metavar="SECONDS")
    command.add_argument("--report", type=Path, required=True, metavar="FILE", help="JSON, replaced every second")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return 0 if run(traffic, options.seconds, options.report, stop=stop) else 1
