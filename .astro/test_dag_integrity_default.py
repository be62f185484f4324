"""Every Dag file imports: what `astro dev parse` and `astro deploy` run, which look for this file by its name.

Our own, because the one the CLI writes fails on Airflow 3.3: it passes DagBag(include_examples=), which is gone, and
makes a metadata database, which parsing does not need. Like it, this accepts the files that are named in
dag_integrity_exceptions.txt. The rules for Dags are in tests/dags/.
"""

import os
import tempfile
from pathlib import Path

import pytest

# Before Airflow is imported: it writes its configuration there, and the default is the user's home.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-home-"))

from airflow.dag_processing.dagbag import DagBag

PROJECT = Path(__file__).resolve().parent.parent
DAGS = PROJECT / "dags"
EXCEPTIONS = PROJECT / ".astro" / "dag_integrity_exceptions.txt"


def exceptions() -> set[str]:
    """Return the paths from the project root that may be broken."""
    lines = EXCEPTIONS.read_text().splitlines() if EXCEPTIONS.exists() else []
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


@pytest.mark.parametrize("path", [str(path.relative_to(PROJECT)) for path in sorted(DAGS.rglob("*.py"))])
def test_file_imports(path: str) -> None:
    if path in exceptions():
        pytest.skip(f"{path} is named in {EXCEPTIONS.name}")
    bag = DagBag(PROJECT / path, safe_mode=False, load_op_links=False)
    assert not bag.import_errors, "\n".join(bag.import_errors.values())
