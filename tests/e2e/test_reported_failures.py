"""A maintenance Dag fails in a real Airflow: its callbacks open an alarm, and close it after the next success."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.e2e.airflow import Airflow, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

DAG = "watch_connectors"
DAGS = (DAG,)


def test_a_failed_task_opens_an_alarm_that_the_next_success_closes(whole_stack, airflow: Airflow):
    with psycopg.connect(whole_stack.endpoints()["databases"]["operations_db"], autocommit=True) as database:

        def open_alarms() -> list[Any]:
            mine = "select message from alarms where source = %s and kind = %s and closed_at is null"
            return database.execute(mine, [f"{DAG}.check_connectors", "dag_failed"]).fetchall()

        # The task writes to this table first. The table of alarms stays.
        database.execute("alter table heartbeats rename to heartbeats_away")
        try:
            airflow.ask("POST", f"/dags/{DAG}/dagRuns", logical_date=None)
            ((message,),) = wait_for(open_alarms, 180, "the alarm is open")
        finally:
            database.execute("alter table heartbeats_away rename to heartbeats")
        assert "failed: ProgrammingError" in message
        airflow.ask("POST", f"/dags/{DAG}/dagRuns", logical_date=None)
        wait_for(lambda: not open_alarms(), 120, "the alarm is closed")
