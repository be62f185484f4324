"""Checks that the declarations of include/project.py fit together, and that the Dags use all of them.

Each check yields one sentence for each omission: what is wrong, and what to do. Without the checks, a consumer without
a Dag, an asset without a watcher or a misspelt effect is noticed only when no message is handled.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from types import CodeType, ModuleType
from typing import Any

from airflow.sdk.definitions.timetables.assets import AssetTriggeredTimetable

from include.streams import Consumer, LandingConsumer, Project
from include.streams.kafka.consumers import FunctionUnusable, Shape, load_function
from include.streams.kafka.trigger import ConsumerLagTrigger
from tests.dags.policy import DagFile, _flat, scheduled_assets

# By the consumer's shape: the function with which a Dag claims, and the function that handles claimed messages.
CLAIMS = {Shape.chunked: "claim_messages", Shape.per_message: "claim_partition_keys"}
HANDLES = {Shape.chunked: "handle_chunk", Shape.per_message: "handle_message"}


@dataclass(frozen=True)
class Use:
    """A task that uses a consumer, with the names of the functions in its code."""

    file: DagFile
    task: str
    consumer: Any
    functions: frozenset[str]


def consumers_used(files: Iterable[DagFile]) -> list[Use]:
    """Every task of the Dags with every consumer that it names."""
    return [use for file in files for use in _uses(file)]


def _uses(file: DagFile) -> Iterator[Use]:
    imported = _imported(file.tree)
    for task in file.dag.tasks:
        arguments = {**getattr(task, "partial_kwargs", {}), **vars(task)}
        consumers = [value for value in arguments.values() if isinstance(value, (Consumer, LandingConsumer))]
        call = getattr(task, "python_callable", None)
        names = frozenset(_names(call.__code__)) if hasattr(call, "__code__") else frozenset()
        known = {**getattr(call, "__globals__", {}), **imported}
        for name in sorted(names):
            value = known.get(name)
            # The attributes of an imported module that the code names.
            values = [getattr(value, other, None) for other in names] if isinstance(value, ModuleType) else [value]
            consumers += [value for value in values if isinstance(value, (Consumer, LandingConsumer))]
        functions = names | {type(task).__name__}
        for consumer in {each.name: each for each in consumers}.values():
            yield Use(file, task.task_id, consumer, functions)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _imported(tree: ast.Module) -> dict[str, Any]:
    """{name: object} of the consumers and modules that the file imports from include/, in function bodies too."""
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "include":
            continue
        if (node.module or "").startswith("include.streams"):
            continue
        for alias in node.names:
            value = getattr(importlib.import_module(str(node.module)), alias.name, None)
            if isinstance(value, (Consumer, LandingConsumer, ModuleType)):
                names[alias.asname or alias.name] = value
    return names


def functions_exist(project: Project, files: list[DagFile]) -> Iterator[str]:
    """Every function that a declaration names exists and accepts its arguments."""
    for consumer in project.consumers:
        for load in (consumer.load_effect, consumer.load_prepare):
            try:
                load()
            except FunctionUnusable as broken:
                yield str(broken)
    named: list[tuple[str, str, tuple[str, ...]]] = []
    for consumer in project.landing_consumers:
        if consumer.suite:
            named.append((consumer.suite, f"consumer {consumer.name}: its suite", ()))
    for package in project.packages:
        if package.retention:
            named.append((package.retention, f"package {package.name}: its retention", ("inbox_kept",)))
        for keyed in package.keyed_assets:
            if isinstance(keyed.keys, str):
                named.append((keyed.keys, f"package {package.name}: the keys of {keyed.asset}", ("dag_id",)))
    for name, what, arguments in named:
        try:
            load_function(name, what, *arguments)
        except FunctionUnusable as broken:
            yield str(broken)
    for package in project.packages:
        for name, what in _named_objects(package):
            try:
                resolve_name(name)
            except (ImportError, AttributeError, ValueError) as error:
                yield f"package {package.name}: its {what} {name!r} cannot be imported ({error}); correct the name"


def _named_objects(package: Any) -> Iterator[tuple[str, str]]:
    yield from ((name, what) for name, what in ((package.assets, "assets"), (package.repairs, "repairs")) if name)
    yield from ((name, "nightly function") for name in package.nightly)
    yield from ((keyed.asset, "keyed asset") for keyed in package.keyed_assets)
    if package.demo.simulators:
        yield package.demo.simulators, "simulators"


def consumers_are_declared(project: Project, files: list[DagFile]) -> Iterator[str]:
    """Maintenance covers only declared consumers: another consumer could be late, or leave files, without an alarm."""
    known = {consumer.name for consumer in (*project.consumers, *project.landing_consumers)}
    for use in consumers_used(files):
        if use.consumer.name not in known:
            where = "landing_consumers" if isinstance(use.consumer, LandingConsumer) else "consumers"
            yield (
                f"{use.file}: task {use.task} uses the consumer {use.consumer.name}, which no package of "
                f"include/project.py declares, so maintenance does not look after it; add it to {where}= of its package"
            )


def consumers_have_dags(project: Project, files: list[DagFile]) -> Iterator[str]:
    """A Dag claims for every consumer, and handles the claimed messages."""
    uses = consumers_used(files)
    for consumer in project.consumers:
        functions_of_tasks = [use.functions for use in uses if use.consumer.name == consumer.name]
        for function in (CLAIMS[consumer.shape], HANDLES[consumer.shape]):
            if not any(function in functions for functions in functions_of_tasks):
                yield (
                    f"consumer {consumer.name}: no Dag calls {function} with it, so its messages wait for ever; write "
                    "one, or remove the consumer from its package"
                )
    for consumer in project.landing_consumers:
        functions_of_tasks = [use.functions for use in uses if use.consumer.name == consumer.name]
        for function in ("plan", "close"):
            if not any(function in functions for functions in functions_of_tasks):
                yield (
                    f"consumer {consumer.name}: no Dag calls landing_tasks.{function} with it, so what lands waits for "
                    "ever; write one, or remove the consumer from its package"
                )


def shapes_fit(project: Project, files: list[DagFile]) -> Iterator[str]:
    """A Dag claims with the function for the consumer's shape."""
    for use in consumers_used(files):
        if not isinstance(use.consumer, Consumer):
            continue
        for shape, function in [*CLAIMS.items(), *HANDLES.items()]:
            if function in use.functions and shape is not use.consumer.shape:
                yield (
                    f"{use.file}: task {use.task} calls {function} with the consumer {use.consumer.name}, whose shape "
                    f"is {use.consumer.shape!s}; use {CLAIMS[use.consumer.shape]} and {HANDLES[use.consumer.shape]}, "
                    "or change the shape"
                )


def dags_claim_what_they_watch(project: Project, files: list[DagFile]) -> Iterator[str]:
    """The assets that start a Dag watch the lag of the consumer that it claims."""
    for file in files:
        claimed = {
            use.consumer.name for use in _uses(file) if isinstance(use.consumer, Consumer) and _claims(use.functions)
        }
        watched = {name: asset.name for asset in scheduled_assets(file.dag) for name in _watched(asset)}
        if not isinstance(file.dag.timetable, AssetTriggeredTimetable):
            # A Dag with a schedule of its own needs no watcher.
            continue
        for name in sorted(claimed - watched.keys()):
            others = ", ".join(f"{asset} watches {other}" for other, asset in sorted(watched.items()))
            yield (
                f"{file}: claims the consumer {name}, whose lag no asset that starts it watches"
                f"{f' ({others})' if others else ''}; add watchers=[lag_watcher(...)] of this consumer to its asset"
            )
        for name, asset in sorted(watched.items()):
            if name not in claimed:
                yield (
                    f"{file}: starts when {name} is behind (asset {asset}) and does not claim this consumer; claim it, "
                    "or schedule the Dag with the asset of the consumer that it claims"
                )


def _claims(functions: frozenset[str]) -> bool:
    return not functions.isdisjoint(CLAIMS.values())


def _watched(asset: Any) -> list[str]:
    """The names of the consumers whose lag the asset watches."""
    return [
        watcher.name for watcher in getattr(asset, "watchers", ()) if isinstance(watcher.trigger, ConsumerLagTrigger)
    ]


def assets_are_updated(project: Project, files: list[DagFile]) -> Iterator[str]:
    """Every asset that starts a Dag has a watcher, or a task that updates it."""
    scheduled = [(file, asset) for file in files for asset in scheduled_assets(file.dag)]
    updated = {asset.name for _, asset in scheduled if getattr(asset, "watchers", ())}
    for file in files:
        for task in file.dag.tasks:
            updated |= {asset.name for item in task.outlets for asset in _flat(item) if hasattr(asset, "name")}
    for file, asset in scheduled:
        if hasattr(asset, "name") and asset.name not in updated:
            yield (
                f"{file}: starts with the asset {asset.name}, which has no watcher and which no task updates, so the "
                f"Dag never starts; declare it with watchers=[lag_watcher(...)], or give a task outlets=[{asset.name}]"
            )


def tables_have_revisions(declared: Iterable[str], revisions: Iterable[Path]) -> Iterator[str]:
    """Every declared table is created by a revision.

    Args:
        declared: Names of tables in the code.
        revisions: The files of all revisions.
    """
    created: set[str] = set()
    for path in revisions:
        source = path.read_text()
        created |= set(re.findall(r'create_table\(\s*"(\w+)"', source))
        created |= set(re.findall(r"create table (?:if not exists )?(\w+)", source, re.IGNORECASE))
        created |= set(re.findall(r'rename_table\(\s*"\w+",\s*"(\w+)"', source))
    for name in sorted(set(declared) - created):
        yield (
            f"table {name} is declared, and no revision creates it, so every statement with it fails; add one to "
            "migrations/versions/ of its package (docs/your-own-topic.md)"
        )


def moved_claims_find_their_dag(project: Project, files: list[DagFile]) -> Iterator[str]:
    """The Dag `move_claim` starts the Dag with the consumer's name, and that Dag claims for the consumer."""
    uses = consumers_used(files)
    for consumer in project.consumers_by_name.values():
        if getattr(consumer, "shape", None) is Shape.per_message:
            # `maintain` emits the keys of its open claims again.
            continue
        dags = {use.file.dag.dag_id for use in uses if use.consumer.name == consumer.name}
        if dags and consumer.name not in dags:
            yield (
                f"consumer {consumer.name}: the Dag {', '.join(sorted(dags))} claims for it, and has another name, so "
                "move_claim would look for its runs in the wrong Dag; give the Dag the consumer's name"
            )


CHECKS = (
    functions_exist,
    consumers_are_declared,
    consumers_have_dags,
    shapes_fit,
    dags_claim_what_they_watch,
    assets_are_updated,
    moved_claims_find_their_dag,
)
