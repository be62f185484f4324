"""The Dag with the provider's operator, in a real Airflow."""

from __future__ import annotations

import uuid

import psycopg
import pytest

from include.water.topics import SEISMIC_EVENTS, SeismicEvent
from tests.clients import producer_to
from tests.e2e.airflow import Airflow
from tests.unit.water.test_topics import example

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

DAG = "record_earthquakes"
DAGS = (DAG,)


def test_each_run_records_the_events_since_the_last_run(whole_stack, airflow: Airflow):
    stack = whole_stack.endpoints()
    producer = producer_to({**stack["kafka"]["client_config"], "log_level": 2}, SEISMIC_EVENTS.name)
    ids = [f"test{uuid.uuid4().hex[:8]}" for _ in range(2)]
    for number, seismic_id in enumerate(ids):
        key, value = SEISMIC_EVENTS.serialize(example(SeismicEvent, seismic_id=seismic_id))
        producer.produce(SEISMIC_EVENTS.name, value, key=key)
        assert producer.flush(30) == 0
        airflow.ask("POST", f"/dags/{DAG}/dagRuns", dag_run_id=seismic_id, logical_date=None)
        airflow.wait_for_success(seismic_id, DAG, seconds=180)
        with psycopg.connect(stack["databases"]["operations_db"]) as connection:
            query = "select seismic_id from earthquakes where seismic_id = any(%s)"
            recorded = {row[0] for row in connection.execute(query, [ids]).fetchall()}
        assert recorded == set(ids[: number + 1])
