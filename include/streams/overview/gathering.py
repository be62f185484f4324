"""Query all services of a project for its state: once, in parallel, and with a short limit on the time.

Nothing is changed or recorded, and no alarm opens; the Dags of `dags/operations/` do this.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from typing import Any

from include.streams.contracts import Topic
from include.streams.kafka.consumers import Consumer
from include.streams.landing.consumers import LandingConsumer
from include.streams.overview.facts import AlarmFacts, ConsumedTopic, ConsumerFacts, LandedTopic, Overview, Problem
from include.streams.packages import Project

# The longest wait for all services together.
SECONDS = 12.0
# A broker answers within milliseconds. The limit is for a broker that is unavailable, which must not use up SECONDS.
BROKER_SECONDS = 3.0
# Counting the inbox rows of a busy day takes seconds.
STATEMENT_MS = 8_000
MAX_PROBLEM_LENGTH = 300
DATABASE, STORE, CONNECT, AIRFLOW = "operational database", "landing tables", "Kafka Connect", "Airflow"

CLIENTS = (
    "airflow.configuration", "airflow.sdk", "airflow.providers.apache.kafka.hooks.base", "confluent_kafka.admin",
    "include.streams.kafka.watch", "include.streams.operations.database",
)  # fmt: skip
LANDING_CLIENTS = (
    "airflow.providers.http.hooks.http", "pyiceberg.catalog.sql", "include.streams.compat.objects",
    "include.streams.landing.connectors", "include.streams.landing.connector_status", "include.streams.landing.watch",
)  # fmt: skip

Part = Callable[[], Any]


@dataclass
class _Counts:
    """Counts from the operational database.

    Attributes:
        outcomes: {(consumer, topic): {outcome: messages}}.
        reasons: {consumer: {reason: dead letters}}.
        claims: {consumer: (number of open claims, age of the oldest in seconds)}.
        unhandled: {consumer: messages of open claims that are not handled}.
        failing: {consumer: ranges whose effects keep failing}.
        missing: {topic id: offsets recorded as missing}.
    """

    outcomes: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)
    claims: dict[str, tuple[int, float]] = field(default_factory=dict)
    unhandled: dict[str, int] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)


def gather(
    project: Project,
    *,
    topic: str | None = None,
    consumer: str | None = None,
    period: timedelta = timedelta(days=1),
    seconds: float = SECONDS,
) -> Overview:
    """Query the services for the state of a project.

    Args:
        project: The project.
        topic: Only this topic, with its consumers and their alarms.
        consumer: Only this consumer, with its topics and their alarms.
        period: Messages and ended runs are counted for this period up to now.
        seconds: The limit for all services together. A value that is not known by then is None.

    Returns:
        The state. `problems` names the services that are unavailable; the other values are complete.

    Raises:
        LookupError: The project has no such topic or consumer.
    """
    consumers, topics = _wanted(project, topic, consumer)
    now = datetime.now(UTC)
    since = now - period
    landed = [t for t in topics if t.landed]
    _import_clients(is_landing=bool(landed))
    brokers = _Brokers()
    names = [c.name for c in consumers]
    parts: dict[str, tuple[str, Part]] = {
        "outcomes": (DATABASE, partial(_outcomes, names, since)),
        "counts": (DATABASE, partial(_counts, names)),
        "alarms": (DATABASE, _alarms),
        "dags": (AIRFLOW, partial(_dags, since)),
    }
    for each in consumers:
        is_landing = isinstance(each, LandingConsumer)
        service = STORE if is_landing else brokers.name(each.conn_id)
        parts[f"status of {each.name}"] = (service, partial(_status, each, brokers))
    if landed:
        parts["tables"] = (STORE, partial(_tables, landed))
        parts["connectors"] = (CONNECT, partial(_connectors, landed))
        for each in landed:
            parts[f"sink of {each.name}"] = (brokers.name(), partial(_not_landed, each, brokers))
    answers, problems = _ask(parts, seconds)
    counts: _Counts | None = answers.get("counts")
    outcomes: _Counts | None = answers.get("outcomes")
    alarms: list[AlarmFacts] | None = answers.get("alarms")
    if alarms is not None and (topic or consumer):
        sources = _sources(consumers, topics)
        alarms = [alarm for alarm in alarms if alarm["source"] in sources]
    return {
        "at": now.isoformat(timespec="seconds"),
        "since": since.isoformat(timespec="seconds"),
        "consumers": [
            _consumer_facts(each, answers.get(f"status of {each.name}"), counts, outcomes) for each in consumers
        ],
        "landed": [
            _landed_facts(each, answers.get("tables"), answers.get("connectors"), answers, counts, now)
            for each in landed
        ],
        "dags": answers.get("dags"),
        "alarms": alarms,
        "problems": problems,
    }


def _import_clients(*, is_landing: bool) -> None:
    """Import the modules of the parts first: threads that import at the same time could see half-loaded modules."""
    for module in (*CLIENTS, *(LANDING_CLIENTS if is_landing else ())):
        import_module(module)


def _wanted(
    project: Project, topic: str | None, consumer: str | None
) -> tuple[list[Consumer | LandingConsumer], list[Topic]]:
    """The requested consumers and topics. Raises LookupError if the project has no such name."""
    consumers = [*project.consumers, *project.landing_consumers]
    topics = list(project.topics)
    if topic is not None:
        topics = [_named(topic, topics, "topic")]
        consumers = [each for each in consumers if topic in _topics_of(each)]
    if consumer is not None:
        requested = _named(consumer, [*project.consumers, *project.landing_consumers], "consumer")
        if requested not in consumers:
            raise LookupError(f"consumer {consumer} does not read {topic}; it reads {', '.join(_topics_of(requested))}")
        consumers = [requested]
        topics = [each for each in topics if each.name in _topics_of(requested)]
    return consumers, topics


def _named(name: str, listed: Iterable[Any], what: str) -> Any:
    known = {declared.name: declared for declared in listed}
    if name not in known:
        raise LookupError(f"no {what} {name!r} in include/project.py; it has: {', '.join(sorted(known)) or 'none'}")
    return known[name]


def _topics_of(consumer: Consumer | LandingConsumer) -> list[str]:
    if isinstance(consumer, LandingConsumer):
        return [consumer.topic.name]
    return [topic.name for topic in consumer.topics]


def _sources(consumers: Iterable[Consumer | LandingConsumer], topics: Iterable[Topic]) -> set[str]:
    """The sources of alarms about these consumers and topics."""
    from include.streams.landing.tables import clean_table, connector_name, raw_table

    names = {consumer.name for consumer in consumers}
    for topic in topics:
        names |= {topic.name, topic.dead_letter_name, raw_table(topic), clean_table(topic), connector_name(topic)}
    return names


def _ask(parts: Mapping[str, tuple[str, Part]], seconds: float) -> tuple[dict[str, Any], list[Problem]]:
    """Call all parts at once, each in a thread; returns {part: answer}, and a problem for each service without one.

    The threads are daemons, so that a part that hangs does not prevent the end of the process.
    """
    answers: dict[str, Any] = {}
    errors: dict[str, Exception] = {}

    def call(name: str, part: Part) -> None:
        try:
            answers[name] = part()
        except Exception as error:
            errors[name] = error

    threads = {
        name: threading.Thread(target=call, args=(name, part), name=f"overview: {name}", daemon=True)
        for name, (_, part) in parts.items()
    }
    until = time.monotonic() + seconds
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(max(0.0, until - time.monotonic()))
    # Copies, because a part that ends later must not change them while they are read.
    answers, errors = dict(answers), dict(errors)
    # One problem for each service, because an outage fails many parts in the same way.
    problems: dict[str, str] = {}
    for name, (service, _) in parts.items():
        if name not in answers:
            text = _text_of(errors[name]) if name in errors else f"no answer within {seconds:.0f} s"
            problems.setdefault(service, text)
    return answers, [{"service": service, "text": text} for service, text in problems.items()]


def _text_of(error: Exception) -> str:
    """The error in one line."""
    from confluent_kafka import KafkaException

    # For a database error, the driver's text: SQLAlchemy's own text has additional lines about SQLAlchemy.
    text = error.args[0].str() if isinstance(error, KafkaException) else str(getattr(error, "orig", None) or error)
    return " ".join(text.split())[:MAX_PROBLEM_LENGTH] or type(error).__name__


class _Brokers:
    """Checks whether the brokers of the connections answer, once for each connection."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[str, threading.Lock] = {}
        self._errors: dict[str, Exception | None] = {}

    def name(self, conn_id: str | None = None) -> str:
        """The name of the service, for people."""
        return f"Kafka ({conn_id or _kafka_conn_id()})"

    def require(self, conn_id: str | None = None) -> None:
        """Raise the client's error if the broker does not answer: a consumer's requests would wait much longer."""
        from confluent_kafka.admin import AdminClient

        from include.streams.kafka.connection import ClientErrors, admin_config, client_config

        conn_id = conn_id or _kafka_conn_id()
        with self._lock:
            lock = self._asked.setdefault(conn_id, threading.Lock())
        with lock:
            if conn_id not in self._errors:
                try:
                    config = client_config(conn_id)
                    errors = ClientErrors(conn_id, config)
                    client = AdminClient(admin_config(config))
                    with errors.explaining(client):
                        client.list_topics(timeout=BROKER_SECONDS)
                    self._errors[conn_id] = None
                except Exception as error:
                    self._errors[conn_id] = error
        if (error := self._errors[conn_id]) is not None:
            raise error


def _kafka_conn_id() -> str:
    from include.streams.kafka.connection import CONN_ID

    return CONN_ID


def _status(consumer: Consumer | LandingConsumer, brokers: _Brokers) -> Any:
    """The consumer's `ConsumerStatus`."""
    if isinstance(consumer, LandingConsumer):
        from include.streams.landing import watch as landing_watch

        return landing_watch.fetch_status(consumer)
    from include.streams.kafka import watch

    brokers.require(consumer.conn_id)
    return watch.fetch_status(consumer)


def _outcomes(consumers: list[str], since: datetime) -> _Counts:
    from sqlalchemy import func, select

    from include.streams.operations.tables import Outcome, inbox

    counts = _Counts()
    conditions = (inbox.c.recorded_at >= since, inbox.c.consumer.in_(consumers))
    columns = (inbox.c.consumer, inbox.c.topic, inbox.c.outcome, inbox.c.reason)
    with _with_statement_timeout() as connection:
        for name, topic, outcome, reason, number in connection.execute(
            select(*columns, func.count()).where(*conditions).group_by(*columns)
        ):
            of_topic = counts.outcomes.setdefault((name, topic), {})
            of_topic[outcome] = of_topic.get(outcome, 0) + number
            if outcome == Outcome.dead_letter:
                reasons = counts.reasons.setdefault(name, {})
                reasons[str(reason)] = reasons.get(str(reason), 0) + number
    return counts


def _counts(consumers: list[str]) -> _Counts:
    from sqlalchemy import func, select, text

    from include.streams.kafka.claims import claimed_unhandled
    from include.streams.kafka.postponed import IN_ITS_RUN
    from include.streams.operations.tables import claims, postponed_ranges

    counts = _Counts()
    is_open = (claims.c.closed_at.is_(None), claims.c.consumer.in_(consumers))
    age = func.extract("epoch", func.now() - func.min(claims.c.claimed_at))
    open_claims = select(claims.c.consumer, func.count(), age).where(*is_open).group_by(claims.c.consumer)
    failing = (
        select(claims.c.consumer, func.count())
        .join(postponed_ranges, postponed_ranges.c.claim_id == claims.c.id)
        .where(*is_open, postponed_ranges.c.tries != IN_ITS_RUN)
        .group_by(claims.c.consumer)
    )
    # A row may hold many ranges.
    missing = text("""
        select topic_id, sum(coalesce(
            (select sum(upper(part) - lower(part)) from unnest(ranges) as part), end_offset - start_offset))
        from landing_gaps where state = 'missing' group by topic_id
    """)
    with _with_statement_timeout() as connection:
        for name, number, oldest in connection.execute(open_claims):
            counts.claims[name] = number, float(oldest)
            counts.unhandled[name] = sum(claimed_unhandled(connection, name).values())
        counts.failing = {name: number for name, number in connection.execute(failing)}
        counts.missing = {topic_id: int(number) for topic_id, number in connection.execute(missing)}
    return counts


@contextmanager
def _with_statement_timeout() -> Iterator[Any]:
    """A transaction with a timeout for each statement."""
    from sqlalchemy import func, select

    from include.streams.operations.database import begin

    with begin() as connection:
        connection.execute(select(func.set_config("statement_timeout", f"{STATEMENT_MS}ms", True)))
        yield connection


def _alarms() -> list[AlarmFacts]:
    from include.streams.operations.alarm_kinds import runbook_of
    from include.streams.operations.alarms import open_alarms

    now = datetime.now(UTC)
    return [
        {
            "source": alarm.source,
            "kind": alarm.kind,
            "key": alarm.key,
            "message": alarm.message,
            "open_seconds": (now - alarm.opened_at).total_seconds(),
            "runbook": runbook_of(alarm.kind, alarm.message),
        }
        for alarm in open_alarms()
    ]


def _dags(since: datetime) -> dict[str, dict[str, int]]:
    from include.streams.compat.metadata import run_states

    return run_states(since)


def _tables(topics: Iterable[Topic]) -> dict[str, dict[str, Any]]:
    """{topic: rows, clean rows, last commit and topic id of its tables}, without topics that have no table."""
    from pyiceberg.exceptions import NoSuchTableError

    from include.streams.lake.catalog import load_current
    from include.streams.landing.tables import clean_table, load_landing_table, row_count, topic_id

    by_topic: dict[str, dict[str, Any]] = {}
    for topic in topics:
        try:
            table = load_landing_table(topic)
        except NoSuchTableError:
            continue
        snapshot = table.current_snapshot()
        facts = {"topic_id": topic_id(table), "rows": row_count(snapshot), "committed_at": None, "clean_rows": None}
        if snapshot is not None:
            facts["committed_at"] = datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC)
        with suppress(NoSuchTableError):
            facts["clean_rows"] = row_count(load_current(clean_table(topic)).current_snapshot())
        by_topic[topic.name] = facts
    return by_topic


def _connectors(topics: Iterable[Topic]) -> dict[str, Any]:
    """{topic: the `ConnectorStatus` of its connector}."""
    from include.streams.landing.connect import Connect
    from include.streams.landing.connector_status import ConnectorStatus
    from include.streams.landing.tables import connector_name

    connect = Connect()
    return {topic.name: ConnectorStatus.of(connect, connector_name(topic)) for topic in topics}


def _not_landed(topic: Topic, brokers: _Brokers) -> int:
    """How many records the sink has not read."""
    from include.streams.kafka.offsets import GroupOffsets
    from include.streams.landing.tables import sink_group

    brokers.require()
    with GroupOffsets(sink_group(topic)) as group:
        return sum(offsets.lag for offsets in group.fetch_offsets_sync([topic.name]).values())


def _consumer_facts(
    consumer: Consumer | LandingConsumer, status: Any, counts: _Counts | None, outcomes: _Counts | None
) -> ConsumerFacts:
    is_landing = isinstance(consumer, LandingConsumer)
    name = consumer.name
    topics: list[ConsumedTopic] = []
    for topic in _topics_of(consumer):
        waiting = status.waiting.get(topic) if status is not None else None
        of_topic = None if outcomes is None else outcomes.outcomes.get((name, topic), {})
        topics.append(
            {
                "topic": topic,
                "lag": status.behind.get(topic, 0) if status is not None else None,
                "age_seconds": waiting.total_seconds() if waiting is not None else None,
                "handled": None if of_topic is None or is_landing else of_topic.get("handled", 0),
                "duplicates": None if of_topic is None or is_landing else of_topic.get("duplicate", 0),
                "dead_letters": None if of_topic is None else of_topic.get("dead_letter", 0),
                "not_wanted": None if of_topic is None or is_landing else of_topic.get("not_wanted", 0),
            }
        )
    number, oldest = (0, None) if counts is None else counts.claims.get(name, (0, None))
    return {
        "name": name,
        "lane": "standard" if is_landing else "event",
        "topics": topics,
        "dead_letters": None if outcomes is None else outcomes.reasons.get(name, {}),
        "open_claims": None if counts is None else number,
        "oldest_claim_seconds": oldest,
        "unhandled": None if counts is None else counts.unhandled.get(name, 0),
        "failing": None if counts is None else counts.failing.get(name, 0),
    }


def _landed_facts(
    topic: Topic,
    tables: dict[str, dict[str, Any]] | None,
    connectors: dict[str, Any] | None,
    answers: Mapping[str, Any],
    counts: _Counts | None,
    now: datetime,
) -> LandedTopic:
    table = (tables or {}).get(topic.name)
    connector = (connectors or {}).get(topic.name)
    committed_at = table["committed_at"] if table else None
    return {
        "topic": topic.name,
        "rows": table["rows"] if table else None,
        "clean_rows": table["clean_rows"] if table else None,
        "not_landed": answers.get(f"sink of {topic.name}"),
        "missing": counts.missing.get(table["topic_id"], 0) if table and counts is not None else None,
        "committed_seconds": (now - committed_at).total_seconds() if committed_at else None,
        "connector": str(connector) if connector is not None else None,
        "cause": connector.cause if connector is not None else "",
    }
