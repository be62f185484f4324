"""The Dag files import where a listener is registered: Astro always registers OpenLineage's."""

from __future__ import annotations

from pathlib import Path

from tests.dags.importing import import_dags
from tests.dags.policy import DAGS

# With a listener, Airflow refuses this Dag; so its error shows that the listener is registered.
REFUSED = """
from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.sdk import DAG

with DAG("ends_in_its_trigger"):
    DateTimeSensorAsync(task_id="wait", target_time="2026-01-01T00:00:00Z", end_from_trigger=True)
"""


def test_every_dag_imports_where_a_listener_is_registered(tmp_path: Path, dag_files):
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "ends_in_its_trigger.py").write_text(REFUSED)
    imported = import_dags(DAGS, tmp_path / "refused", home=tmp_path / "home", listener=True)
    assert imported["listeners"]
    assert [Path(path).name for path in imported["errors"]] == ["ends_in_its_trigger.py"], imported["errors"]
    assert set(imported["dags"]) == {file.dag.dag_id for file in dag_files}
