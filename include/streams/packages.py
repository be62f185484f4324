"""Declarations: a package of `include/`, and the project that consists of all packages.

`include/project.py` lists the packages. The Dags in `dags/operations/`, the local stack and the checks of `tests/dags`
read only that list. So none of them changes when a topic, a consumer or a whole package is added or removed.

A declaration names functions ("package.module:function") and imports none of them, because each Dag file imports all
declarations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TypeVar

from include.streams.contracts import Registry
from include.streams.kafka.consumers import Consumer
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.tables import clean_table
from include.streams.operations.alarm_kinds import AlarmKind, KindWithRunbook

if TYPE_CHECKING:
    from airflow.sdk import Asset

    from include.streams.contracts.repairs import Repairs

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class KeyedAsset:
    """An asset whose partition keys each start a run, and the source of keys that have to be emitted again.

    Airflow forgets the keys that an asset gets while the Dag is paused. The Dag `maintain` emits them again.

    Attributes:
        asset: "package.module:NAME" of the asset.
        dag_id: The Dag that its keys start.
        keys: The consumer with one run per message that emits the keys. Or "package.module:function": it is called in a
            task as `function(dag_id)` and returns the keys to emit again, or raises AirflowSkipException if there are
            none.
    """

    asset: str
    dag_id: str
    keys: Consumer | str

    @property
    def name(self) -> str:
        """The asset's name in `asset`, in lower case: a task is named after it."""
        return self.asset.rpartition(":")[2].lower()

    @property
    def consumer(self) -> Consumer | None:
        """The consumer whose claims have the keys; None if a function finds them."""
        return None if isinstance(self.keys, str) else self.keys

    def load_asset(self) -> Asset:
        """Import the asset. A Dag file may call this: it has imported Airflow anyway."""
        return resolve_name(self.asset)

    def keys_to_emit_again(self) -> list[str]:
        """The keys that started no run. Call this in a task.

        Returns:
            The keys, to be emitted again.

        Raises:
            AirflowSkipException: There are no such keys, or the Dag is paused.
        """
        if isinstance(self.keys, str):
            return resolve_name(self.keys)(self.dag_id)
        from include.streams.kafka.context import keys_to_emit_again

        return keys_to_emit_again(self.keys, self.dag_id)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The simulators and results of a package, for the local stack. Nothing of it is deployed.

    Attributes:
        simulators: The module that sends messages. It is called as `python -m <module> run --for SECONDS --report
            FILE`, with `arguments`. The report is a JSON object: `sent` and `planted_bad` are {topic: number of
            messages}, `finished` is whether the simulator ran to its end.
        arguments: Further arguments of `run`.
        feeds: HTTP sources that the Dags poll: {Airflow connection: module and arguments}. The stack runs the module
            with `--port PORT`, and the connection points to it.
        kafka_connections: Airflow connections to the broker besides `kafka_default`: {connection: {setting: value} in
            addition to the client's settings}.
        results: The results that `make demo` shows: {database: {title: SQL that selects a name and a number}}. A
            database is `operations_db` or `airflow_metadata`.
        awaited: Events that `make demo` waits for: {description: SQL that selects how often the event happened}, in
            `operations_db`.
        pages: Pages in the Airflow UI that `make demo` lists: {title: path}.
    """

    simulators: str | None = None
    arguments: tuple[str, ...] = ()
    feeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kafka_connections: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    awaited: Mapping[str, str] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Package:
    """The declarations of one package of `include/`.

    Attributes:
        name: Its folder in `include/`.
        topics: Its topics.
        assets: The module that declares its assets; None if it has none.
        consumers: Its consumers of topics (the event lane).
        landing_consumers: Its consumers of landing tables (the standard lane).
        keyed_assets: Its assets whose partition keys each start a run.
        tables: Iceberg tables that its tasks write, besides the clean tables of its landing consumers:
            "namespace.table".
        repairs: "package.module:NAME" of its repairs of dead letters.
        alarm_kinds: The enum of its own kinds of alarms; None if it opens none.
        retention: "package.module:function", called as `function(inbox_kept)` with the time for which inbox rows are
            kept (None: forever); it returns the rules for pruning the package's own tables.
        nightly: Functions for `maintain_tables`, each "package.module:function". Each is called as
            `function(seconds=...)`, starts nothing new after that time, and returns how much it removed.
        demo: Simulators and results for the local stack.
    """

    name: str
    topics: Registry
    assets: str | None = None
    consumers: tuple[Consumer, ...] = ()
    landing_consumers: tuple[LandingConsumer, ...] = ()
    keyed_assets: tuple[KeyedAsset, ...] = ()
    tables: tuple[str, ...] = ()
    repairs: str | None = None
    alarm_kinds: type[KindWithRunbook] | None = None
    retention: str | None = None
    nightly: tuple[str, ...] = ()
    demo: Demo = field(default_factory=Demo)


class Project:
    """All packages of a project together: their topics, consumers, tables, and settings for the local stack.

    Args:
        packages: The packages, each with another name.

    Attributes:
        packages: The packages.
        topics: All topics.
        consumers: All consumers of topics.
        landing_consumers: All consumers of landing tables.
        consumers_by_name: {name: consumer}, of both lanes.
        keyed_assets: {name: asset}; a task of `maintain` is named after each.
        alarm_kinds: {name: kind of alarm}, of the library and of all packages.
        nightly: {name: "package.module:function"}; a task of `maintain_tables` is named after each.

    Raises:
        ValueError: Two packages, consumers, assets, connections or kinds of alarms have the same name, a consumer reads
            a topic that no package declares, or two topics collide (see `Registry`).
    """

    def __init__(self, *packages: Package):
        self.packages = packages
        _distinct("package", (package.name for package in packages))
        _distinct("topic", (topic.name for package in packages for topic in package.topics))
        self.topics = Registry(*(topic for package in packages for topic in package.topics))
        self.consumers = _joined(package.consumers for package in packages)
        self.landing_consumers = _joined(package.landing_consumers for package in packages)
        # Two consumers of one name would share a consumer group and claims, and take messages from each other.
        _distinct("consumer", (consumer.name for consumer in (*self.consumers, *self.landing_consumers)))
        self.consumers_by_name = {each.name: each for each in (*self.consumers, *self.landing_consumers)}
        self._check_topics()
        self.keyed_assets = {keyed.name: keyed for package in packages for keyed in package.keyed_assets}
        _distinct("keyed asset", (keyed.name for package in packages for keyed in package.keyed_assets))
        # Of two connections with one name, the stack would silently use only one.
        _distinct("connection", chain.from_iterable((*d.feeds, *d.kafka_connections) for d in self.demos))
        kinds = [*AlarmKind, *(kind for package in packages for kind in package.alarm_kinds or ())]
        _distinct("kind of alarm", kinds)
        self.alarm_kinds: dict[str, KindWithRunbook] = {kind.value: kind for kind in kinds}
        functions = _joined(package.nightly for package in packages)
        _distinct("nightly function", (name.rpartition(":")[2] for name in functions))
        self.nightly = {name.rpartition(":")[2]: name for name in functions}

    @property
    def landed_topics(self) -> list[str]:
        """The names of the topics that land in tables."""
        return [topic.name for topic in self.topics if topic.landed]

    @property
    def tables(self) -> tuple[str, ...]:
        """The Iceberg tables that tasks write, without the landing tables, which Kafka Connect writes."""
        clean = (clean_table(consumer.topic) for consumer in self.landing_consumers)
        return tuple(dict.fromkeys((*clean, *_joined(package.tables for package in self.packages))))

    def prepare(self) -> list[str]:
        """Bring the databases, Kafka and Kafka Connect to the state that this version of the project needs.

        The Dag `prepare_services` and the local stack call it. It can be repeated without harm.

        Returns:
            One text for each change.

        Raises:
            Exception: An error of the database, Kafka or Kafka Connect. Earlier changes stay.
        """
        from include.streams.services import prepare

        return prepare(self.topics)

    def prune(self, days: Mapping[str, Any], *, seconds: float) -> dict[str, int]:
        """Delete old rows that are no longer needed, also from the packages' own tables. Call this in a task.

        Inbox rows are kept for longer than `inbox_days` if a broker keeps the messages of a topic for longer than the
        topic declares. They are all kept if a broker's settings cannot be read.

        Args:
            days: {name: days to keep}, with the parameter names of `include.streams.operations.retention.rules`.
            seconds: After about this time, the remaining rows are left for the next call.

        Returns:
            {table: number of deleted rows}.

        Raises:
            RetentionTooShort: A value is too small.
        """
        from include.streams.kafka.retention import inbox_days
        from include.streams.operations.retention import check_inbox, prune, rules

        days = dict(days)
        if days["inbox_days"] is not None:
            check_inbox(timedelta(days=days["inbox_days"]), self.topics)
            read = [(consumer.conn_id, topic) for consumer in self.consumers for topic in consumer.topics]
            read += [(consumer.conn_id, consumer.topic) for consumer in self.landing_consumers]
            days["inbox_days"] = inbox_days(days["inbox_days"], read)
        inbox_kept = timedelta(days=days["inbox_days"]) if days["inbox_days"] is not None else None
        functions = [resolve_name(package.retention) for package in self.packages if package.retention]
        own = chain.from_iterable(function(inbox_kept) for function in functions)
        return prune([*rules(self.topics, **days), *own], seconds=seconds)

    def repairs_of(self, topic: str) -> Repairs:
        """The repairs of dead letters that a topic's package declares. Call this in a task.

        Args:
            topic: The topic's name.

        Returns:
            The repairs; none if the package has no repairs.

        Raises:
            LookupError: No package declares the topic.
        """
        from include.streams.contracts.repairs import Repairs

        for package in self.packages:
            if topic in package.topics:
                return resolve_name(package.repairs) if package.repairs else Repairs()
        raise LookupError(f"no package of include/project.py declares the topic {topic!r}")

    @property
    def demos(self) -> list[Demo]:
        """The simulators and results of each package, for the local stack."""
        return [package.demo for package in self.packages]

    @property
    def feeds(self) -> dict[str, list[str]]:
        """{Airflow connection: module and arguments} of the HTTP sources that the Dags poll."""
        return {name: list(command) for demo in self.demos for name, command in demo.feeds.items()}

    @property
    def kafka_connections(self) -> dict[str, dict[str, str]]:
        """{Airflow connection to the broker: {setting: value}}, besides `kafka_default`."""
        return {name: dict(value) for demo in self.demos for name, value in demo.kafka_connections.items()}

    def _check_topics(self) -> None:
        for consumer in self.consumers:
            read = {topic.name for topic in consumer.topics}
            if unknown := sorted(read - {topic.name for topic in self.topics}):
                raise ValueError(
                    f"consumer {consumer.name} reads {', '.join(unknown)}, which no package of include/project.py "
                    "declares: add the topic to the package's registry"
                )
        for consumer in self.landing_consumers:
            if consumer.topic.name not in self.topics:
                raise ValueError(
                    f"consumer {consumer.name} reads {consumer.topic.name}, which no package of include/project.py "
                    "declares: add the topic to the package's registry"
                )


def _joined(parts: Iterable[tuple[T, ...]]) -> tuple[T, ...]:
    return tuple(chain.from_iterable(parts))


def _distinct(what: str, names: Iterable[Any]) -> None:
    """Raise ValueError if a name occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"include/project.py: two declarations of the {what} {name}; rename one of them")
        seen.add(name)
