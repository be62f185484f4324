"""The maintenance Dags cover all consumers and tables, and their failure or silence opens an alarm."""

from __future__ import annotations

import ast
from datetime import timedelta

import pytest
from croniter import croniter

from include.project import PROJECT
from include.streams.kafka import delivery
from include.streams.landing import upkeep
from include.streams.operations.heartbeats import REPORTED


@pytest.fixture
def maintenance(dag_files):
    files = [file for file in dag_files if "maintenance" in file.dag.tags]
    assert files
    return files


def test_a_failure_of_every_maintenance_task_is_reported(maintenance):
    unreported = [
        f"{file}: {task.task_id}"
        for file in maintenance
        for task in file.dag.tasks
        for name, callback in REPORTED.items()
        if callback not in _listed(task.partial_kwargs[name] if task.is_mapped else getattr(task, name))
    ]
    assert not unreported, "set default_args=task_defaults(...) without reported=False"


def test_every_maintenance_dag_beats_at_the_interval_of_its_schedule(maintenance):
    for file in maintenance:
        cron = croniter(file.dag.schedule)
        interval = timedelta(seconds=-cron.get_next(float) + cron.get_next(float))
        assert beats(file.path) == [(file.dag.dag_id, interval)], f"{file}: call beat in one of its tasks"


def beats(path) -> list[tuple[str, timedelta]]:
    """(Dag, interval) of every call of `beat` in the file."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [
        (ast.literal_eval(call.args[0]), eval(ast.unparse(call.keywords[0].value), {"timedelta": timedelta}))
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "beat"
    ]


def _listed(callbacks) -> list:
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]


def test_deliver_outbox_gets_the_consumers_of_both_lanes(dag_files, monkeypatch):
    known: list[str] = []
    monkeypatch.setattr(delivery, "deliver_due", lambda given: known.extend(consumer.name for consumer in given))
    (dag,) = (file.dag for file in dag_files if file.dag.dag_id == "deliver_outbox")
    dag.get_task("deliver").python_callable()
    assert known == [consumer.name for consumer in (*PROJECT.consumers, *PROJECT.landing_consumers)]


# A table that is left out gets one more snapshot with each run.
def test_every_written_table_is_maintained(dag_files, monkeypatch):
    (dag,) = (file.dag for file in dag_files if file.dag.dag_id == "maintain_tables")
    kept = dag.get_task("keep_table").op_kwargs_expand_input.value["name"]
    thinned: list[str] = []
    monkeypatch.setattr(upkeep, "thin_snapshots", lambda names, _: thinned.extend(names))
    (dag,) = (file.dag for file in dag_files if file.dag.dag_id == "expire_snapshots")
    dag.get_task("thin_snapshots").python_callable({"minutes": 30})
    assert set(kept) == set(thinned) == set(PROJECT.tables)
    assert kept or not PROJECT.landing_consumers
