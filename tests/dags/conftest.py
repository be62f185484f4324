"""Load the Dags once, as the Dag processor does, without a metadata database."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

# Before Airflow is imported: it writes its configuration there, and the default is the user's home.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-home-"))
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")

from airflow.dag_processing.dagbag import DagBag

from tests.dags.policy import DAGS, PROJECT, DagFile, Declared, declared_assets, declared_connections

DEFAULT_POOL = "default_pool"


def load(folder: Path) -> tuple[list[DagFile], dict[str, str]]:
    """Return the Dags under `folder` and the import errors by file, cycles and repeated ids among them."""
    # Without safe mode, which skips files that do not look like Dag files.
    bag = DagBag(folder, safe_mode=False, load_op_links=False)
    return [DagFile(dag, Path(dag.fileloc)) for dag in bag.dags.values()], bag.import_errors


@pytest.fixture(scope="session")
def loaded() -> tuple[list[DagFile], dict[str, str]]:
    return load(DAGS)


@pytest.fixture(scope="session")
def dag_files(loaded: tuple[list[DagFile], dict[str, str]]) -> list[DagFile]:
    return loaded[0]


@pytest.fixture(scope="session")
def declared() -> Declared:
    """The declarations of the project."""
    import yaml

    from include.project import PROJECT as project
    from include.streams.kafka import assets

    modules = [assets, *(importlib.import_module(p.assets) for p in project.packages if p.assets)]
    settings = (PROJECT / "airflow_settings.yaml").read_text()
    pools = yaml.safe_load(settings)["airflow"]["pools"] or ()
    return Declared(
        assets=frozenset().union(*map(declared_assets, modules)),
        topics=frozenset(name for topic in project.topics for name in (topic.name, topic.dead_letter_name)),
        connections=declared_connections(settings, (PROJECT / ".env.example").read_text()),
        pools=frozenset({DEFAULT_POOL, *(pool["pool_name"] for pool in pools)}),
    )


@pytest.fixture
def write_dag(tmp_path: Path) -> Callable[..., list[DagFile]]:
    """Write a Dag file into a new folder and load it."""

    def write(source: str, folder: str = "batch") -> list[DagFile]:
        path = tmp_path / folder / "example.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        files, errors = load(path.parent)
        assert not errors
        return files

    return write
