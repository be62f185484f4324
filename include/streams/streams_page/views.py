"""The documents that the Streams page shows: plain data for JSON, worst first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from include.streams.contracts import Topic
from include.streams.kafka.consumers import Consumer, Shape
from include.streams.landing.consumers import LandingConsumer
from include.streams.packages import Project
from include.streams.streams_page import database, services
from include.streams.streams_page.background import Background, Backgrounds, Reading

AnyConsumer = Consumer | LandingConsumer
Read = Callable[[Callable[..., dict[str, Any]]], dict[str, Any]]

DATABASE, CONNECT, STORE, AIRFLOW = "operational database", "Kafka Connect", "landing tables", "Airflow's database"
# The states of a consumer or landed topic, worst first. "unknown": a service that would tell does not answer.
BROKEN, LATE, UNKNOWN, BUSY, WELL = "broken", "late", "unknown", "busy", "well"
STATES = (BROKEN, LATE, UNKNOWN, BUSY, WELL)
# Alarms of these kinds say that something is slow or waits, not that it stands still or is lost.
MILD = {"age", "lag", "claim_open", "many_dead_letters", "conflicting_events", "outbox_pending", "sink_lag",
        "records_stepped_over", "stepping_over", "foreign_commits", "commit_refused"}  # fmt: skip

COUNTS = ("handled", "duplicates", "conflicts", "dead_letters", "not_wanted")
NO_CONNECTOR = {"state": "MISSING", "tasks": [], "cause": "", "running": False, "failed": False}


class Unknown(LookupError):
    """The project has no consumer or topic of this name."""


class Views:
    """Builds the documents of the page. A service that does not answer makes values None, and is named.

    Args:
        project: The project.
        read_database: Calls a function with a connection in a read-only transaction.
    """

    def __init__(self, project: Project, read_database: Read) -> None:
        self._project = project
        self._consumers: dict[str, AnyConsumer] = {c.name: c for c in (*project.consumers, *project.landing_consumers)}
        self._landed = {topic.name: topic for topic in project.topics if topic.landed}
        self._read = read_database
        self._backgrounds = Backgrounds()
        topics_of: dict[str, set[str]] = {}
        for consumer in project.consumers:
            topics_of.setdefault(consumer.conn_id, set()).update(topic.name for topic in consumer.topics)
        self._brokers = {
            conn_id: Background(f"Kafka ({conn_id})", services.log_ends(conn_id, topics), 2.0)
            for conn_id, topics in topics_of.items()
        }
        self._now = Background(DATABASE, partial(read_database, database.read_now), 1.0)
        self._history = Background(DATABASE, partial(read_database, database.read_history), 10.0)
        self._connect = Background(CONNECT, services.connector_states, 5.0)

    def overview(self) -> dict[str, Any]:
        """All consumers, landed topics and alarms."""
        wanted: list[Background[Any]] = [self._now, self._history, *self._brokers.values()]
        if self._landed:
            wanted.append(self._connect)
        now, history, *others = self._backgrounds.gather(wanted)
        ends = dict(zip(self._brokers, others, strict=False))
        connectors = others[-1] if self._landed else Reading(None, None)
        alarms = now.value["alarms"] if now.value else []
        by_source = _by_source(alarms)
        consumers = [
            self._consumer_row(consumer, now.value, history.value, ends, by_source)
            for consumer in self._consumers.values()
        ]
        landed = [self._landed_row(topic, history.value, connectors, by_source) for topic in self._landed.values()]
        return {
            "consumers": sorted(consumers, key=_badness),
            "landed": sorted(landed, key=_badness),
            "alarms": [{**alarm, **self._subject(alarm["source"])} for alarm in reversed(alarms)],
            "problems": _problems(wanted, [now, history, *others]),
            "period_hours": database.PERIOD // timedelta(hours=1),
            "curve_hours": database.CURVE // timedelta(hours=1),
        }

    def consumer(self, name: str) -> dict[str, Any]:
        """One consumer. Raises Unknown if the project has no such consumer."""
        consumer = self._consumers[self.known_consumer(name)]
        own = self._of("consumer", name, DATABASE, lambda: self._read_of(database.read_consumer, name), 1)
        offsets = self._of("offsets", name, _kafka(consumer), lambda: services.group_offsets(consumer), 2)
        ran = self._of("runs", name, AIRFLOW, lambda: self._runs_of(name), 2)
        wanted: list[Background[Any]] = [self._now, self._history, own, offsets, ran, *self._brokers.values()]
        now, history, claims, partitions, runs, *others = readings = self._backgrounds.gather(wanted)
        ends = dict(zip(self._brokers, others, strict=True))
        alarms = _by_source(now.value["alarms"] if now.value else [])
        row = self._consumer_row(consumer, now.value, history.value, ends, alarms)
        found = runs.value or {}
        return {
            **row,
            "limits": {
                "lag": consumer.max_lag,
                "age_seconds": consumer.max_age.total_seconds(),
                "claim_seconds": consumer.max_claim_age.total_seconds(),
            },
            "shape": consumer.shape.value if isinstance(consumer, Consumer) else "batches from a landing table",
            "effect": consumer.effect if isinstance(consumer, Consumer) else None,
            "claims": [
                {**claim, "runs": found.get(claim["run_id"], [])} for claim in (claims.value or {}).get("claims", [])
            ]
            if claims.value
            else None,
            "partitions": _partitions(claims.value, partitions.value),
            "history": claims.value["curve"] if claims.value else None,
            "letters": claims.value["letters"] if claims.value else None,
            "alarm_texts": [alarm for source in _sources(consumer) for alarm in alarms.get(source, ())],
            "problems": _problems(wanted, readings),
        }

    def topic(self, name: str) -> dict[str, Any]:
        """One landed topic. Raises Unknown if the project lands no topic of this name."""
        topic = self._landed[self.known_topic(name)]
        own = self._of("topic", name, DATABASE, lambda: self._read_of(database.read_topic, name), 1)
        table = self._of("table", name, STORE, lambda: services.landing_table(topic, self._complete_until(topic)), 5)
        sink = self._of("sink", name, "Kafka", lambda: services.sink_lag(topic), 5)
        wanted: list[Background[Any]] = [self._now, self._history, self._connect, own, table, sink]
        now, history, connectors, gaps, stored, progress = readings = self._backgrounds.gather(wanted)
        alarms = _by_source(now.value["alarms"] if now.value else [])
        row = self._landed_row(topic, history.value, connectors, alarms)
        return {
            **row,
            "table": stored.value,
            "sink": progress.value,
            "gaps": gaps.value["gaps"] if gaps.value else None,
            "history": gaps.value["curve"] if gaps.value else None,
            "positions": gaps.value["positions"] if gaps.value else None,
            "consumers": [c.name for c in self._project.landing_consumers if c.topic.name == name],
            "alarm_texts": [alarm for source in _topic_sources(topic) for alarm in alarms.get(source, ())],
            "problems": _problems(wanted, readings),
        }

    def _read_of(self, read: Callable[..., dict[str, Any]], name: str) -> dict[str, Any]:
        return self._read(lambda connection: read(connection, name))

    def known_consumer(self, name: str) -> str:
        """The name. Raises Unknown if the project has no such consumer."""
        if name not in self._consumers:
            raise Unknown("the project has no consumer of this name")
        return name

    def known_topic(self, name: str) -> str:
        """The name. Raises Unknown if the project lands no such topic."""
        if name not in self._landed:
            raise Unknown("the project lands no topic of this name")
        return name

    def _of(self, kind: str, name: str, service: str, read: Callable[[], Any], seconds: float) -> Background[Any]:
        return self._backgrounds.of((kind, name), service, read, seconds)

    def _runs_of(self, name: str) -> dict[str, list[dict[str, str]]]:
        """{run id: Dag and state} of the consumer's latest claims."""
        from include.streams.compat.metadata import dags_of_runs

        claims = self._read_of(database.read_consumer, name)["claims"]
        if not claims:
            return {}
        oldest = min(datetime.fromisoformat(claim["claimed_at"]) for claim in claims)
        return dags_of_runs([claim["run_id"] for claim in claims], oldest - timedelta(days=1))

    def _complete_until(self, topic: Topic) -> dict[int, int]:
        """{partition: the highest offset up to which a consumer or the nightly check has found the table complete}."""
        complete: dict[int, int] = {}
        for row in self._read_of(database.read_topic, topic.name)["positions"]:
            # A consumer of the event lane claims what has not landed.
            if row["consumer"] not in {c.name for c in self._project.consumers}:
                complete[row["partition"]] = max(complete.get(row["partition"], 0), row["next_offset"])
        return complete

    def _subject(self, source: str) -> dict[str, Any]:
        """The consumer or topic of the page that an alarm is about."""
        for consumer in self._consumers.values():
            if source == consumer.name:
                return {"consumer": consumer.name}
        for topic in self._landed.values():
            if source in _topic_sources(topic):
                return {"landed": topic.name}
        return {}

    def _consumer_row(
        self,
        consumer: AnyConsumer,
        now: Mapping[str, Any] | None,
        history: Mapping[str, Any] | None,
        ends: Mapping[str, Reading[services.Ends]],
        alarms: Mapping[str, list[dict[str, Any]]],
    ) -> dict[str, Any]:
        is_landing = isinstance(consumer, LandingConsumer)
        name = consumer.name
        names = [consumer.topic.name] if isinstance(consumer, LandingConsumer) else [t.name for t in consumer.topics]
        broker = None if isinstance(consumer, LandingConsumer) else ends[consumer.conn_id]
        topics = [
            {
                "topic": topic,
                "lag": _lag(name, topic, is_landing, now, history, broker),
                **_counts(history, name, topic, is_landing),
            }
            for topic in names
        ]
        lags = [topic["lag"] for topic in topics if topic["lag"] is not None]
        lag = sum(lags) if len(lags) == len(topics) else None
        samples = [history["samples"].get((name, topic)) for topic in names] if history else []
        sampled = [sample for sample in samples if sample is not None]
        ages = [sample.age_seconds for sample in sampled if sample.age_seconds is not None]
        age = None if not lag else max(ages, default=None)
        claims = None if now is None else now["claims"].get(name, {})
        own_alarms = [alarm for source in _sources(consumer) for alarm in alarms.get(source, ())]
        row = {
            "name": name,
            "lane": "standard" if is_landing else "event",
            "topics": topics,
            "lag": lag,
            "age_seconds": age,
            "sampled_at": max((sample.sampled_at for sample in sampled), default=None),
            "curve": history["curves"].get(name, []) if history else [],
            "per_minute": None
            if history is None or is_landing
            else history["recent"].get(name, 0) / (database.RATE / timedelta(minutes=1)),
            **{key: _total(topics, key) for key in COUNTS},
            "reasons": _reasons(history, name, names),
            "open_claims": None if claims is None else claims.get("open", 0),
            "oldest_claim_seconds": None if claims is None else claims.get("oldest_seconds"),
            "unhandled": None if claims is None else claims.get("unhandled", 0),
            "failing": None if claims is None else claims.get("failing", 0),
            "retried_at": None if claims is None else claims.get("retried_at"),
            "alarms": None if now is None else len(own_alarms),
        }
        row["sampled_at"] = row["sampled_at"] and row["sampled_at"].isoformat()
        row["state"], row["waits_for"] = _consumer_state(consumer, row, own_alarms, broker)
        return row

    def _landed_row(
        self,
        topic: Topic,
        history: Mapping[str, Any] | None,
        connectors: Reading[dict[str, dict[str, Any]] | None],
        alarms: Mapping[str, list[dict[str, Any]]],
    ) -> dict[str, Any]:
        from include.streams.landing.tables import connector_name

        sample = history["landed"].get(topic.name) if history else None
        gaps = history["gaps"].get(topic.name, {}) if history else {}
        connector = (connectors.value or {}).get(connector_name(topic))
        own_alarms = [alarm for source in _topic_sources(topic) for alarm in alarms.get(source, ())]
        row = {
            "name": topic.name,
            "connector": connector or (None if connectors.value is None else NO_CONNECTOR),
            "not_landed": sample.not_landed if sample else None,
            "rows": sample.table_rows if sample else None,
            "committed_at": sample.committed_at.isoformat() if sample and sample.committed_at else None,
            "sampled_at": sample.sampled_at.isoformat() if sample else None,
            "missing": None if history is None else gaps.get("missing", 0),
            "lost": None if history is None else gaps.get("lost", 0),
            "curve": history["landed_curves"].get(topic.name, []) if history else [],
            "alarms": len(own_alarms),
        }
        row["state"], row["waits_for"] = _landed_state(row, own_alarms, connectors)
        return row


def _kafka(consumer: AnyConsumer) -> str:
    return f"Kafka ({consumer.conn_id})"


def _by_source(alarms: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    by_source: dict[str, list[dict[str, Any]]] = {}
    for alarm in alarms:
        by_source.setdefault(alarm["source"], []).append(alarm)
    return by_source


def _sources(consumer: AnyConsumer) -> list[str]:
    """The sources of alarms about a consumer."""
    topics = [consumer.topic] if isinstance(consumer, LandingConsumer) else consumer.topics
    return [consumer.name, *(topic.dead_letter_name for topic in topics)]


def _topic_sources(topic: Topic) -> list[str]:
    """The sources of alarms about a landed topic."""
    from include.streams.landing.tables import clean_table, connector_name, raw_table

    return [topic.name, raw_table(topic), clean_table(topic), connector_name(topic)]


def _lag(
    consumer: str,
    topic: str,
    is_landing: bool,
    now: Mapping[str, Any] | None,
    history: Mapping[str, Any] | None,
    broker: Reading[services.Ends] | None,
) -> int | None:
    """Messages that are not claimed: by the log's end now or, in the standard lane, at the last check."""
    if is_landing:
        sample = history["samples"].get((consumer, topic)) if history else None
        return sample.lag if sample else None
    if now is None or broker is None or broker.value is None:
        return None
    positions = now["positions"].get(consumer, {})
    partitions = {key: offsets for key, offsets in broker.value.items() if key[0] == topic}
    if not partitions:
        return None
    return sum(max(0, end - max(positions.get(key, low), low)) for key, (low, end) in partitions.items())


def _counts(history: Mapping[str, Any] | None, consumer: str, topic: str, is_landing: bool) -> dict[str, int | None]:
    """Outcomes of the period. The standard lane records only dead letters."""
    if history is None:
        return dict.fromkeys(COUNTS)
    counts = history["outcomes"].get((consumer, topic), {})
    return {
        "handled": None if is_landing else counts.get("handled", 0),
        "duplicates": None if is_landing else counts.get("duplicate", 0),
        "conflicts": counts.get("reason:conflict", 0),
        "dead_letters": counts.get("dead_letter", 0),
        "not_wanted": None if is_landing else counts.get("not_wanted", 0),
    }


def _total(topics: list[dict[str, Any]], key: str) -> int | None:
    values = [topic[key] for topic in topics]
    return None if None in values else sum(values)


def _reasons(history: Mapping[str, Any] | None, consumer: str, topics: list[str]) -> dict[str, int] | None:
    if history is None:
        return None
    reasons: dict[str, int] = {}
    for topic in topics:
        for key, number in history["outcomes"].get((consumer, topic), {}).items():
            if key.startswith("reason:"):
                name = key.removeprefix("reason:")
                reasons[name] = reasons.get(name, 0) + number
    return dict(sorted(reasons.items(), key=lambda item: -item[1]))


def _consumer_state(
    consumer: AnyConsumer, row: Mapping[str, Any], alarms: list[dict[str, Any]], broker: Reading[Any] | None
) -> tuple[str, str]:
    """The state of a consumer, and what it waits for, in words; empty if nothing waits."""
    kinds = {alarm["kind"] for alarm in alarms}
    waits_for = _waits_for(consumer, row, kinds, broker)
    if kinds - MILD:
        return BROKEN, waits_for
    is_old = (row["oldest_claim_seconds"] or 0) > consumer.max_claim_age.total_seconds()
    is_behind = (row["lag"] or 0) > consumer.max_lag or (row["age_seconds"] or 0) > consumer.max_age.total_seconds()
    if kinds or is_old or is_behind or row["failing"]:
        return LATE, waits_for
    if row["lag"] is None or row["open_claims"] is None:
        return UNKNOWN, waits_for
    return (BUSY if row["lag"] or row["open_claims"] else WELL), waits_for


def _waits_for(consumer: AnyConsumer, row: Mapping[str, Any], kinds: set[str], broker: Reading[Any] | None) -> str:
    if "consumer_stopped" in kinds:
        return "a reset: a topic was recreated or its log was truncated"
    if "suite_failed" in kinds:
        return "a decision: a run broke its suite"
    if "effect_fails" in kinds:
        return "a repair of its effect, which cannot be loaded or always fails"
    if broker is not None and broker.problem:
        return f"Kafka, which {broker.problem}"
    if "partitions_away" in kinds:
        return "partitions without a leader"
    if "transaction_open" in kinds:
        return "an open transaction of a producer"
    if row["failing"]:
        return f"the retry of {row['failing']} ranges whose effects fail"
    if row["unhandled"] and row["open_claims"]:
        shape = consumer.shape if isinstance(consumer, Consumer) else None
        what = "runs of its worker Dag" if shape is Shape.per_message else "the runs that own its open claims"
        return what
    if row["open_claims"]:
        return "its open claims to close"
    if row["lag"]:
        if isinstance(consumer, LandingConsumer):
            return "its next run"
        return "a run: the lag trigger starts one, unless its Dag is paused"
    return ""


def _landed_state(row: Mapping[str, Any], alarms: list[dict[str, Any]], connectors: Reading[Any]) -> tuple[str, str]:
    kinds = {alarm["kind"] for alarm in alarms}
    connector = row["connector"]
    if connectors.problem:
        waits_for = f"Kafka Connect, which {connectors.problem}"
    elif connector and connector["failed"]:
        waits_for = "a restart of its connector, which has failed"
    elif connector and connector["state"] == "MISSING":
        waits_for = "its connector, which is missing: run prepare_services"
    elif connector and not connector["running"]:
        waits_for = f"its connector, which is {connector['state'].lower()}"
    elif row["missing"]:
        waits_for = f"the repair of {row['missing']} missing offsets"
    else:
        waits_for = ""
    if kinds - MILD or (connector and (connector["failed"] or connector["state"] == "MISSING")):
        return BROKEN, waits_for
    if kinds or row["missing"] or (connector and not connector["running"]):
        return LATE, waits_for
    if connector is None or row["missing"] is None:
        return UNKNOWN, waits_for
    return (BUSY if row["not_landed"] else WELL), waits_for


def _badness(row: Mapping[str, Any]) -> tuple[Any, ...]:
    lag = row.get("lag", row.get("not_landed"))
    return STATES.index(row["state"]), -(row["alarms"] or 0), -(lag or 0), row["name"]


def _partitions(claims: Mapping[str, Any] | None, offsets: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Position, committed offset and log end of each partition that the database or the broker knows."""
    if claims is None and offsets is None:
        return None
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for row in offsets or ():
        rows[row["topic"], row["partition"]] = {"position": None, **row}
    for row in (claims or {}).get("positions", ()):
        key = row["topic"], row["partition"]
        known = rows.setdefault(key, {"topic": key[0], "partition": key[1], "problem": "the broker does not know it"
                                      if offsets is not None else None})  # fmt: skip
        known["position"] = row["next_offset"]
        if "topic_id" in known and known["topic_id"].partition("#")[0] != row["topic_id"].partition("#")[0]:
            known["problem"] = "the topic was recreated since the last claim"
    for row in rows.values():
        if row.get("end") is not None:
            start = row["position"] if row.get("position") is not None else (row.get("committed") or 0)
            row["lag"] = max(0, row["end"] - max(start, row["low"]))
    return [rows[key] for key in sorted(rows)]


def _problems(asked: Iterable[Background[Any]], readings: Iterable[Reading[Any]]) -> list[dict[str, str]]:
    """Each service without an answer, once."""
    problems: dict[str, str] = {}
    for background, reading in zip(asked, readings, strict=True):
        if reading.problem:
            problems.setdefault(background.service, reading.problem)
    return [{"service": service, "text": why} for service, why in problems.items()]
