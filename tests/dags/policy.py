"""Rules for all Dags. Each check yields one sentence per violation: the Dag, what is wrong, what to do.

The rules are about errors that nobody notices at first: a task without a timeout can keep its slot forever, nobody is
responsible for a Dag without tag and owner, and a misspelt pool or topic fails at night instead of in a review.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from airflow.sdk import DAG, Asset
from airflow.sdk.definitions.asset import AssetBooleanCondition, AssetNameRef, AssetUriRef
from airflow.sdk.definitions.timetables.assets import AssetTriggeredTimetable
from airflow.sdk.definitions.timetables.simple import ContinuousTimetable

from include.project import PROJECT as OWN
from include.streams.operations.heartbeats import REPORTED

PROJECT = Path(__file__).resolve().parents[2]
DAGS = PROJECT / "dags"


def of_packages(name: str) -> list[Any]:
    """The values of a global of `tests/dags/<package>/__init__.py`, for all packages that have it.

    A package declares TAGS, EXEMPTIONS and HEAVY_DAG_FILES of its own Dags there.
    """
    modules = [f"tests.dags.{package.name}" for package in OWN.packages]
    values = [getattr(importlib.import_module(module), name, None) for module in modules if find_spec(module)]
    return [value for value in values if value is not None]


# All allowed tags. With two spellings of a tag, a search for either would find only some of the Dags.
TAGS = frozenset({"event-driven", "batch", "operations", "kafka", "repair", "maintenance"}).union(*of_packages("TAGS"))
# The tag of each folder.
TAG_OF_FOLDER = {"event_driven": "event-driven", "batch": "batch", "operations": "operations"}

# A Dag file only connects tasks. A longer file has code that belongs in include/.
MAX_LINES = 110

# Exemptions from rules: (rule, "dag" or "dag.task") -> the reason.
EXEMPTIONS: dict[tuple[str, str], str] = {
    ("reports_its_failures", "prepare_services"): "a person starts it, perhaps before there are tables for alarms",
    **dict(item for exemptions in of_packages("EXEMPTIONS") for item in exemptions.items()),
}

# The schedules that join asset events in every version of Airflow, from include/streams/kafka/schedules.py.
JOINED_SCHEDULES = frozenset({"joined", "joined_by_key", "joined_or_at"})

# The names of include.streams with which a Dag works for a consumer.
CLAIMS = frozenset({"claim_messages", "claim_partition_keys", "handle_chunk", "handle_message", "landing_tasks"})

# Modules that a Dag file must not import at its top, because every task process would spend time on the import.
HEAVY = (
    "airflow.providers.common.ai",
    "airflow.providers.common.messaging",
    "airflow.providers.google",
    "airflow.providers.http",
    "alembic",
    "duckdb",
    "gcsfs",
    "google.cloud",
    "great_expectations",
    "numpy",
    "openai",
    "pandas",
    "psycopg",
    "pyarrow",
    "pydantic_ai",
    "pyiceberg",
    "sklearn",
    "sqlalchemy",
)

# Dag files that may import a heavy module -> the reason.
HEAVY_DAG_FILES = {
    "move_claim": "the stock operator that starts another Dag; a person starts this Dag, so its time does not matter",
    **dict(item for files in of_packages("HEAVY_DAG_FILES") for item in files.items()),
}


@dataclass(frozen=True)
class Declared:
    """The assets, topics, connections and pools that Dags may use, each declared in one place."""

    assets: frozenset[tuple[str, str]]  # (name, uri), from the modules `Package.assets`
    topics: frozenset[str]  # of include/project.py, dead-letter topics included
    connections: frozenset[str]  # from airflow_settings.yaml and .env.example
    pools: frozenset[str]  # from airflow_settings.yaml


@dataclass(frozen=True)
class DagFile:
    """A Dag and its file."""

    dag: DAG
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text())

    @property
    def folder(self) -> str:
        return self.path.parent.name

    @property
    def is_event_driven(self) -> bool:
        return any(asset.watchers for asset in scheduled_assets(self.dag) if isinstance(asset, Asset))

    @property
    def works_for_a_consumer(self) -> bool:
        imports = (node for node in ast.walk(self.tree) if isinstance(node, ast.ImportFrom))
        return any(alias.name in CLAIMS for node in imports if node.module == "include.streams" for alias in node.names)

    @property
    def is_repair(self) -> bool:
        return "repair" in self.dag.tags

    def __str__(self) -> str:
        return f"Dag {self.dag.dag_id} ({self.folder}/{self.path.name})"


def declared_connections(settings: str, env_example: str) -> frozenset[str]:
    """Connection ids in the text of airflow_settings.yaml and .env.example, where optional ones are commented out."""
    from_settings = {c["conn_id"] for c in yaml.safe_load(settings)["airflow"]["connections"] or ()}
    from_env = re.findall(r"^(?:# )?AIRFLOW_CONN_([A-Z0-9_]+)=", env_example, re.MULTILINE)
    return frozenset(from_settings | {name.lower() for name in from_env})


def declared_assets(module: ModuleType) -> frozenset[tuple[str, str]]:
    """(name, uri) of every asset that is a global of the module."""
    return frozenset((a.name, a.uri) for a in vars(module).values() if isinstance(a, Asset))


def scheduled_assets(dag: DAG) -> Iterator[Any]:
    """Assets, and references to assets, that start the Dag."""
    yield from _flat(getattr(dag.timetable, "asset_condition", None))


def used_assets(dag: DAG) -> Iterator[Any]:
    """Assets that start the Dag, and that its tasks read or update."""
    yield from scheduled_assets(dag)
    for task in dag.tasks:
        for item in (*task.inlets, *task.outlets):
            yield from _flat(item)


def _flat(condition: Any) -> Iterator[Any]:
    if isinstance(condition, AssetBooleanCondition):
        for part in condition.objects:
            yield from _flat(part)
    elif condition is not None:
        yield condition


def settings_of(dag: DAG) -> Iterator[tuple[str, str, Any]]:
    """(where, name, value) of every argument of the Dag's operators and of its assets' triggers."""
    for task in dag.tasks:
        arguments = {**getattr(task, "partial_kwargs", {}), **vars(task)}
        for name, value in arguments.items():
            yield f"task {task.task_id}", name, value
    for asset in used_assets(dag):
        for watcher in getattr(asset, "watchers", ()):
            for name, value in watcher.trigger.serialize()[1].items():
                yield f"watcher {watcher.name} of asset {asset.name}", name, value


def has_owner(file: DagFile, declared: Declared) -> Iterator[str]:
    """Every task has an owner who is not Airflow's default."""
    for task in file.dag.tasks:
        if task.owner in ("", "airflow"):
            yield (
                f"{file}: task {task.task_id} has no owner; set default_args=task_defaults(...), so that an alarm "
                "has somebody to go to"
            )


def takes_task_defaults(file: DagFile, declared: Declared) -> Iterator[str]:
    """No Dag file writes the default arguments of its tasks as a dict."""
    for name, value in _named_values_of(file.tree):
        if name == "default_args" and isinstance(value, ast.Dict):
            yield f"{file}: default_args is a dict; use task_defaults(...) of include.streams, and name what differs"


def has_known_tags(file: DagFile, declared: Declared) -> Iterator[str]:
    """All tags are allowed tags, and the folder's tag is among them."""
    if unknown := sorted(file.dag.tags - TAGS):
        yield (
            f"{file}: unknown tags {unknown}; use some of {sorted(TAGS)}, or add to TAGS in "
            "tests/dags/<package>/__init__.py"
        )
    expected = TAG_OF_FOLDER.get(file.folder)
    if expected is None:
        yield f"{file}: lies in the folder {file.folder!r}; move it to one of {sorted(TAG_OF_FOLDER)}"
    elif expected not in file.dag.tags:
        yield f"{file}: lacks the tag {expected!r} of its folder; add it to tags="


def is_documented(file: DagFile, declared: Declared) -> Iterator[str]:
    """The file's docstring is the Dag's documentation in the UI."""
    docstring = ast.get_docstring(file.tree)
    if not docstring:
        yield f"{file}: no module docstring; say what starts it, what it makes and what happens when it fails"
    elif inspect.cleandoc(file.dag.doc_md or "") != docstring:
        yield f"{file}: its docstring does not reach the UI; set doc_md=__doc__"


def is_retried(file: DagFile, declared: Declared) -> Iterator[str]:
    """Every task has retries, because brokers and databases are unavailable at times."""
    for task in file.dag.tasks:
        exempt = ("is_retried", f"{file.dag.dag_id}.{task.task_id}") in EXEMPTIONS
        if not task.retries and not exempt:
            yield (
                f"{file}: task {task.task_id} has no retries; set retries=, or give the reason for none in EXEMPTIONS "
                "in tests/dags/<package>/__init__.py"
            )


def reports_its_failures(file: DagFile, declared: Declared) -> Iterator[str]:
    """A failed task opens an alarm, and its next success closes the alarm: nobody reads the list of runs.

    A Dag that works for a consumer needs no report: its claim stays open, and unclaimed messages wait, which opens the
    alarms `claim_open` and `age`. A person starts a repair, and sees its result.
    """
    if ("reports_its_failures", file.dag.dag_id) in EXEMPTIONS or file.works_for_a_consumer or file.is_repair:
        return
    for task in file.dag.tasks:
        callbacks = task.partial_kwargs if task.is_mapped else vars(task)
        if missing := [name for name, callback in REPORTED.items() if callback not in _listed(callbacks.get(name))]:
            yield (
                f"{file}: task {task.task_id} lacks {', '.join(missing)}; set default_args=task_defaults(...) without "
                "reported=False, or say in EXEMPTIONS in tests/dags/<package>/__init__.py what raises an alarm instead"
            )


def _listed(callbacks: Any) -> list[Any]:
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]


def has_timeouts(file: DagFile, declared: Declared) -> Iterator[str]:
    """Every task and every run has a timeout: otherwise a task that hangs keeps its slot and its run forever."""
    for task in file.dag.tasks:
        if task.execution_timeout is None:
            yield f"{file}: task {task.task_id} may hang for ever; set execution_timeout="
    exempt = ("has_timeouts", file.dag.dag_id) in EXEMPTIONS
    if file.dag.dagrun_timeout is None and not exempt:
        yield (
            f"{file}: a run may last for ever; set dagrun_timeout=, or give the reason for none in EXEMPTIONS in "
            "tests/dags/<package>/__init__.py"
        )


def does_not_catch_up(file: DagFile, declared: Declared) -> Iterator[str]:
    """No runs for the past: missed data are still in Kafka, or in the next poll of the source."""
    if file.dag.catchup:
        yield f"{file}: catchup is on; remove it: after a pause, one run processes all that waits"


def goes_on_when_continuous(file: DagFile, declared: Declared) -> Iterator[str]:
    """A continuous Dag needs a start date: without it, Airflow gives all runs the same date, so only one is created."""
    if isinstance(file.dag.timetable, ContinuousTimetable) and file.dag.start_date is None:
        yield f"{file}: is continuous and has no start_date; set one in the past, or it runs once and never again"


def joins_its_events(file: DagFile, declared: Declared) -> Iterator[str]:
    """A schedule joins asset events: by default, Airflow 3.4 creates a run for each event."""
    if not isinstance(file.dag.timetable, AssetTriggeredTimetable):
        return
    for schedule in _schedules(file.tree):
        is_call = isinstance(schedule, ast.Call) and isinstance(schedule.func, ast.Name)
        if is_call and schedule.func.id in JOINED_SCHEDULES:
            continue
        known = sorted(JOINED_SCHEDULES)
        yield f"{file}: schedule={ast.unparse(schedule)}; use one of {known} from include/streams/kafka/schedules.py"


def limits_its_runs(file: DagFile, declared: Declared) -> Iterator[str]:
    """An event-driven Dag sets max_active_runs: the default is a setting of the cluster."""
    if file.is_event_driven and "max_active_runs" not in _dag_arguments(file.tree):
        yield f"{file}: set max_active_runs=; messages start its runs, and only 1 keeps their order"


def repairs_are_safe_to_start(file: DagFile, declared: Declared) -> Iterator[str]:
    """A person starts a repair in a hurry: by default it changes nothing, it runs at once, and two never work at once.

    Every parameter has a description. Its default does no harm, or it has no default.
    """
    if not file.is_repair:
        return
    if file.dag.schedule is not None or file.dag.max_active_runs != 1 or file.dag.is_paused_upon_creation is not False:
        yield f"{file}: is a repair; pass **REPAIR to @dag: no schedule, one run at a time, not paused when it is new"
    if file.dag.params.get("dry_run") is not True:
        yield f"{file}: is a repair, and dry_run is not on by default; use repair_params(...)"
    for name, param in file.dag.params.items():
        if not param.description:
            yield f"{file}: the parameter {name} has no description; the form in Airflow shows it"


def is_short(file: DagFile, declared: Declared) -> Iterator[str]:
    """A Dag file is short, because it only connects tasks."""
    lines = len(file.path.read_text().splitlines())
    if lines > MAX_LINES:
        yield f"{file}: {lines} lines, at most {MAX_LINES}; move what is not wiring to include/"


def uses_declared_assets(file: DagFile, declared: Declared) -> Iterator[str]:
    """Assets are declared in one file, so that a reader finds what starts what."""
    names = {name for name, _ in declared.assets}
    uris = {uri for _, uri in declared.assets}
    for asset in used_assets(file.dag):
        if isinstance(asset, AssetNameRef):
            is_declared = asset.name in names
        elif isinstance(asset, AssetUriRef):
            is_declared = asset.uri in uris
        else:
            is_declared = isinstance(asset, Asset) and (asset.name, asset.uri) in declared.assets
        if not is_declared:
            yield f"{file}: uses {asset!r}; declare it in the assets.py of its package and import it from there"


def uses_declared_topics(file: DagFile, declared: Declared) -> Iterator[str]:
    """Operators and triggers name topics of the registry: a misspelt topic would never have a message."""
    for where, name, value in settings_of(file.dag):
        if name not in ("topic", "topics") or value is None:
            continue
        for topic in [value] if isinstance(value, str) else value:
            if topic not in declared.topics:
                yield f"{file}: {where} uses the topic {topic!r}; declare it in the topics.py of its package"


def uses_declared_connections(file: DagFile, declared: Declared) -> Iterator[str]:
    """Operators and triggers name declared connections, so that a deployment knows which ones it needs."""
    for where, name, value in settings_of(file.dag):
        # kafka_config_id is what the Kafka provider calls its connection.
        is_connection = name.endswith("conn_id") or name == "kafka_config_id"
        if is_connection and isinstance(value, str) and value not in declared.connections:
            yield (
                f"{file}: {where} uses the connection {value!r}; declare it in airflow_settings.yaml, or in "
                ".env.example when it has a password"
            )


def uses_declared_pools(file: DagFile, declared: Declared) -> Iterator[str]:
    """Pools are declared: a task in a pool that does not exist is never scheduled."""
    for task in file.dag.tasks:
        if task.pool not in declared.pools:
            yield f"{file}: task {task.task_id} uses the pool {task.pool!r}; declare it in airflow_settings.yaml"


def ends_its_tasks_in_a_worker(file: DagFile, declared: Declared) -> Iterator[str]:
    """No trigger ends a task: with a listener, as on Astro, Airflow refuses to import such a Dag."""
    for where, name, value in settings_of(file.dag):
        if name == "end_from_trigger" and value:
            yield (
                f"{file}: {where} sets end_from_trigger=True, and does not import where a listener is registered, as "
                "OpenLineage's is on Astro; remove the argument"
            )


def repairs_gaps_before_it_plans(file: DagFile, declared: Declared) -> Iterator[str]:
    """A lane claims each partition up to its first gap. If no run repaired gaps, it would wait until the night."""
    repairs = _tasks_calling(file.dag, "repair_gaps")
    for task_id in sorted(_tasks_calling(file.dag, "plan")):
        if not repairs & file.dag.get_task(task_id).get_flat_relative_ids(upstream=True):
            yield (
                f"{file}: task {task_id} plans what has landed, and no task in front of it calls "
                "landing_tasks.repair_gaps; add one, or the lane stands still at the first offset that the sink loses"
            )


def _tasks_calling(dag: DAG, name: str) -> set[str]:
    """The tasks whose code calls the function of this name in `landing_tasks`."""
    codes = {task.task_id: getattr(getattr(task, "python_callable", None), "__code__", None) for task in dag.tasks}
    return {task_id for task_id, code in codes.items() if code and {"landing_tasks", name} <= {*code.co_names}}


POLICIES = (
    has_owner,
    takes_task_defaults,
    has_known_tags,
    is_documented,
    is_retried,
    reports_its_failures,
    has_timeouts,
    does_not_catch_up,
    goes_on_when_continuous,
    joins_its_events,
    limits_its_runs,
    repairs_are_safe_to_start,
    is_short,
    uses_declared_assets,
    uses_declared_topics,
    uses_declared_connections,
    uses_declared_pools,
    ends_its_tasks_in_a_worker,
    repairs_gaps_before_it_plans,
)


def _dag_arguments(tree: ast.Module) -> set[str]:
    """Names of the arguments that the file gives to DAG(...) or @dag(...)."""
    return {keyword.arg for keyword in _dag_keywords(tree) if keyword.arg}


def _schedules(tree: ast.Module) -> list[ast.expr]:
    """The schedule= of the file's Dags."""
    return [keyword.value for keyword in _dag_keywords(tree) if keyword.arg == "schedule"]


def _dag_keywords(tree: ast.Module) -> Iterator[ast.keyword]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("DAG", "dag"):
            yield from node.keywords


def _named_values_of(tree: ast.Module) -> Iterator[tuple[str, ast.expr | None]]:
    """Keyword arguments, and items of dicts such as `**SETTINGS`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg:
            yield node.arg, node.value
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant):
                    yield str(key.value), value


def connections_in_code(root: Path) -> Iterator[tuple[str, str]]:
    """(place, connection id) of every connection id that code under `root` has in plain text.

    Constants named CONN_ID or *_CONN_ID, defaults of parameters and keyword arguments named conn_id or *_conn_id.
    """
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for name, value in _named_values(node):
                if not re.fullmatch(r"(?i)(.*_)?conn_id|kafka_config_id", name):
                    continue
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield f"{path}:{value.lineno}", value.value


def _named_values(node: ast.AST) -> Iterator[tuple[str, ast.expr | None]]:
    if isinstance(node, ast.Assign):
        yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id, node.value
    elif isinstance(node, ast.keyword) and node.arg:
        yield node.arg, node.value
    elif isinstance(node, ast.arguments):
        positional = [*node.posonlyargs, *node.args]
        defaults = node.defaults
        yield from ((a.arg, d) for a, d in zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
        yield from ((a.arg, d) for a, d in zip(node.kwonlyargs, node.kw_defaults, strict=True))
