"""The metrics of the library, through Airflow's stats interface: to StatsD, Datadog or OpenTelemetry, as configured.

`docs/metrics.md` lists them. A metric that cannot be sent never fails a task: it is logged once for each process, and
the work continues. Outside Airflow's processes nothing is sent.

The values of attributes are declared names (consumers, topics, kinds) and members of enums. A key, an id or a text of a
message is never one of them, because each value is a time series that is stored for months.
"""

import hashlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

log = logging.getLogger(__name__)

# The names of attributes in OpenTelemetry's conventions for messaging.
CONSUMER, TOPIC, SYSTEM = "messaging.consumer.group.name", "messaging.destination.name", "messaging.system"
# StatsD's names end at 250 characters in Airflow, and a longer one is dropped. With two values of this length, the
# longest name of this module fits. OpenTelemetry has no such limit, and a Kafka topic has at most 249 characters.
MAX_STATSD_VALUE, MAX_VALUE = 64, 249
_OTHER = re.compile(r"[^a-zA-Z0-9_.-]")
_failures: set[str] = set()


@dataclass(frozen=True)
class Metric:
    """A metric of the library.

    Attributes:
        name: Its name, without Airflow's prefix.
        unit: Its unit as OpenTelemetry writes it.
        attributes: The names of its attributes, in the order in which plain StatsD has them in the name.
        meaning: What it counts or shows, for `docs/metrics.md`.
    """

    name: str
    unit: str
    attributes: tuple[str, ...]
    meaning: str

    @property
    def is_messaging(self) -> bool:
        """Whether the name is one of OpenTelemetry's conventions."""
        return self.name.startswith("messaging.")

    def _send(self, send: Callable[..., Any], *values: str) -> None:
        """Call `send` with the metric's name and tags.

        Any error is caught, because a collector's failure must not fail a task that has applied effects.
        """
        try:
            send(*named(self, values))
        except Exception as error:
            if self.name not in _failures:
                _failures.add(self.name)
                log.warning("metric %s is not sent: %s: %s", self.name, type(error).__name__, error)


class Counter(Metric):
    """A sum that only grows."""

    def add(self, number: int, *values: str) -> None:
        """Add to the sum. Call it after the transaction that makes it true is committed.

        Args:
            number: What to add; nothing is sent for 0.
            values: The values of the attributes.
        """
        if number:
            self._send(lambda name, tags: _stats().incr(name, number, tags=tags), *values)


class Gauge(Metric):
    """A number that a check has read."""

    def show(self, value: float | timedelta, *values: str) -> None:
        """Send the present value.

        Args:
            value: The value; a duration is sent in seconds.
            values: The values of the attributes.
        """
        number = value.total_seconds() if isinstance(value, timedelta) else value
        self._send(lambda name, tags: _stats().gauge(name, number, tags=tags), *values)


class Duration(Metric):
    """A distribution of durations. Airflow sends them in milliseconds."""

    def record(self, duration: timedelta, *values: str) -> None:
        """Send one duration.

        Args:
            duration: The duration.
            values: The values of the attributes.
        """
        self._send(lambda name, tags: _stats().timing(name, duration, tags=tags), *values)


def _stats() -> Any:
    from airflow.sdk.observability import stats

    return stats


def named(metric: Metric, values: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """The name and the tags with which Airflow is called.

    Plain StatsD has no tags: the series of all consumers would be one. So the values are then parts of the name, with
    `__` instead of each dot, as Airflow writes them in its own names.

    Args:
        metric: The metric.
        values: The values of its attributes.

    Raises:
        ValueError: The number of values is not that of the attributes.
    """
    in_statsd, has_tags = _backend()
    limit = MAX_STATSD_VALUE if in_statsd else MAX_VALUE
    tags = {name: plain(value, limit) for name, value in zip(metric.attributes, values, strict=True)}
    if not has_tags:
        return ".".join([metric.name, *(value.replace(".", "__") for value in tags.values())]), {}
    # The convention requires this attribute.
    return metric.name, {SYSTEM: "kafka", **tags} if metric.is_messaging else tags


def plain(value: str, limit: int) -> str:
    """The value with only the characters that StatsD takes, and at most `limit` of them.

    Args:
        value: The name of a consumer, a topic or a connection, or a member of an enum.
        limit: The most characters. A longer value ends in a digest, so that two long values stay apart.
    """
    written = _OTHER.sub("_", str(value))
    if len(written) <= limit:
        return written
    return f"{written[: limit - 9]}-{hashlib.sha256(str(value).encode()).hexdigest()[:8]}"


@cache
def _backend() -> tuple[bool, bool]:
    """Whether Airflow sends to StatsD, and whether it sends tags."""
    from airflow.sdk.configuration import conf

    if conf.getboolean("metrics", "statsd_datadog_enabled", fallback=False):
        return True, conf.getboolean("metrics", "statsd_datadog_metrics_tags", fallback=True)
    if conf.getboolean("metrics", "statsd_on", fallback=False):
        return True, conf.getboolean("metrics", "statsd_influxdb_enabled", fallback=False)
    return False, True


CONSUMED = Counter(
    "messaging.client.consumed.messages",
    "{message}",
    (CONSUMER, TOPIC),
    "messages that a task of the event lane has read to handle them; a retry counts those that it reads again",
)
PROCESSED = Duration(
    "messaging.process.duration",
    "ms",
    (CONSUMER, TOPIC),
    "the time to handle one batch of up to 500 messages: contract, effects and their transaction, dead letters",
)
SENT = Counter(
    "messaging.client.sent.messages",
    "{message}",
    (CONSUMER, TOPIC),
    "messages of the outbox that the broker has acknowledged; a crash can send one again",
)
MESSAGES = Counter(
    "streams.messages",
    "{message}",
    (CONSUMER, TOPIC, "outcome"),
    "messages with an outcome, counted when it is committed: `handled`, `duplicate`, `dead_letter` or `not_wanted`; in "
    "the standard lane when a run has balanced, where `handled` are the clean rows",
)
DEAD_LETTERS = Counter(
    "streams.dead_letters",
    "{message}",
    (CONSUMER, TOPIC, "reason"),
    "dead letters by reason (`Reason`); `conflict` are the conflicting events",
)
FAILED_EFFECTS = Counter(
    "streams.effects.failed",
    "{message}",
    (CONSUMER, TOPIC),
    "attempts of effects that failed and are retried",
)
LAG = Gauge(
    "streams.consumer.lag",
    "{message}",
    (CONSUMER, TOPIC),
    "messages that no run has claimed; with one run per message, also claimed messages that are not handled; in the "
    "standard lane, landed and not claimed",
)
OLDEST_MESSAGE = Gauge(
    "streams.consumer.oldest_message.age",
    "s",
    (CONSUMER, TOPIC),
    "how long the oldest message that no run has claimed has waited; 0 if none waits",
)
OPEN_CLAIMS = Gauge("streams.consumer.open_claims", "{claim}", (CONSUMER,), "claims that are not handled completely")
OLDEST_CLAIM = Gauge(
    "streams.consumer.oldest_claim.age", "s", (CONSUMER,), "the age of the oldest open claim; 0 if none is open"
)
OUTBOX = Gauge(
    "streams.outbox.rows",
    "{row}",
    (CONSUMER, "state"),
    "rows of the outbox: `pending`, or `failed` (refused too often; a person decides)",
)
OUTBOX_AGE = Gauge(
    "streams.outbox.oldest.age", "s", (CONSUMER,), "the age of the oldest pending row of the outbox; 0 if none waits"
)
LANDING_LAG = Gauge(
    "streams.landing.lag", "{message}", (TOPIC,), "records of a landed topic that its connector has not read"
)
LANDING_AGE = Gauge(
    "streams.landing.commit.age",
    "s",
    (TOPIC,),
    "freshness of a landing table: the time since the connector has last committed. The sink commits at each interval, "
    "also without records",
)
GAPS = Gauge(
    "streams.landing.missing_offsets", "{offset}", (TOPIC,), "offsets that are missing in a landing table: its gaps"
)
ALARMS = Gauge("streams.alarms.open", "{alarm}", ("kind",), "open alarms by kind; each kind has a runbook")

ALL: tuple[Metric, ...] = (
    CONSUMED,
    PROCESSED,
    SENT,
    MESSAGES,
    DEAD_LETTERS,
    FAILED_EFFECTS,
    LAG,
    OLDEST_MESSAGE,
    OPEN_CLAIMS,
    OLDEST_CLAIM,
    OUTBOX,
    OUTBOX_AGE,
    LANDING_LAG,
    LANDING_AGE,
    GAPS,
    ALARMS,
)
