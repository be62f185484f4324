"""Files of the register in a real Airflow: the provider's sensor waits in the triggerer until a file arrives."""

from __future__ import annotations

import urllib.request
from urllib.parse import quote

import psycopg
import pytest

from include.water.register.layout import INCOMING, Kind
from include.water.register.samples import bad_file, good_file
from tests.e2e.airflow import Airflow, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

DAG = "import_site_register"
DAGS = (DAG,)


def waiting_run(airflow: Airflow) -> str | None:
    """The run whose sensor waits in the triggerer now."""
    for run in airflow.ask("GET", f"/dags/{DAG}/dagRuns?order_by=-id&limit=1")["dag_runs"]:
        states = {task["task_id"]: task["state"] for task in airflow.tasks(run["dag_run_id"], DAG)}
        if states.get("wait_for_files") == "deferred":
            return run["dag_run_id"]
    return None


def upload(whole_stack, name: str, data: bytes) -> None:
    """Upload a file like another program, through the store's own API."""
    store = whole_stack.endpoints()["object_store"]["url"]
    path = f"{store}/upload/storage/v1/b/artifacts/o?uploadType=media&name={quote(INCOMING + name, safe='')}"
    urllib.request.urlopen(urllib.request.Request(path, data, {"Content-Type": "text/csv"}), timeout=30).close()


def test_files_that_arrive_during_the_wait_are_imported_or_rejected(whole_stack, airflow: Airflow):
    run_id = wait_for(lambda: waiting_run(airflow), 120, f"a run of {DAG} waits in the triggerer")
    upload(whole_stack, "sites.csv", good_file(Kind.sites, rows=30))
    airflow.wait_for_success(run_id, DAG, seconds=120)
    # The prefix is empty again: the next run waits, and its sensor does not fire on processed files.
    run_id = wait_for(lambda: waiting_run(airflow), 120, "the next run waits")
    upload(whole_stack, "customers.csv", bad_file(Kind.customers))
    airflow.wait_for_success(run_id, DAG, seconds=120)
    with psycopg.connect(whole_stack.endpoints()["databases"]["operations_db"]) as connection:
        files = connection.execute("select kind, state, rows from register_files order by recorded_at").fetchall()
        sites = connection.execute("select count(*) from register_sites").fetchone()
        customers = connection.execute("select count(*) from register_customers").fetchone()
        alarms = connection.execute("select count(*) from alarms where source = %s", [DAG]).fetchone()
    assert files == [("sites", "applied", 30), ("customers", "rejected", 51)]
    assert (sites, customers, alarms) == ((30,), (0,), (1,))
