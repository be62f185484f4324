"""Every Dag file can be loaded, and these checks find a broken one."""

from __future__ import annotations

from pathlib import Path

import pytest

from include.project import PROJECT as OWN
from tests.dags.conftest import load
from tests.dags.policy import DAGS, TAG_OF_FOLDER

DAG = """
from airflow.sdk import DAG, task

with DAG("{dag_id}"):

    @task
    def one(): ...

    @task
    def two(): ...

    first, second = one(), two()
    first >> second
"""


def test_every_dag_file_imports(loaded):
    dag_files, errors = loaded
    assert not errors, "\n".join(f"{path}: {error}" for path, error in errors.items())
    assert {file.path for file in dag_files} == set(DAGS.rglob("*.py")), "a file in dags/ defines no Dag"


def test_every_folder_of_dags_has_dags():
    # A project without consumers of a lane may have no Dag for it.
    needed = {"operations": True, "event_driven": OWN.consumers, "batch": OWN.landing_consumers}
    found = {path.parent.name for path in DAGS.rglob("*.py")}
    assert {folder for folder, is_needed in needed.items() if is_needed} <= found <= set(TAG_OF_FOLDER)


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"broken.py": "import a_module_that_is_not_there"}, "ModuleNotFoundError"),
        ({"circle.py": DAG.format(dag_id="circle") + "    second >> first\n"}, "Cycle"),
        ({"a.py": DAG.format(dag_id="same"), "b.py": DAG.format(dag_id="same")}, "Duplicated"),
    ],
)
def test_a_broken_dag_file_is_found(tmp_path: Path, files: dict[str, str], error: str):
    for name, source in files.items():
        (tmp_path / name).write_text(source)
    _, errors = load(tmp_path)
    assert any(error in text for text in errors.values()), errors
