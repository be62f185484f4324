"""A running Airflow with an OpenTelemetry collector: it gets the metrics and the spans of the event lane.

It has a stack of its own, because only its Airflow sends anything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from include.streams.operations import metrics
from include.streams.operations.alarm_kinds import AlarmKind
from tests.clients import producer_to
from tests.collector import OtlpReceiver
from tests.conftest import PROJECT, start_stack
from tests.e2e.airflow import Airflow, wait_for
from tests.e2e.conftest import SHOP_DAGS, bundles
from tests.e2e.lane import Lane
from tests.e2e.shop import BOOK_ORDERS, BOOKED, ORDERS, Order

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

DAG = BOOK_ORDERS.name
TRACE = uuid.uuid4().hex
SPAN = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01".encode()


class Running(NamedTuple):
    """The stack, its collector, and its Airflow."""

    endpoints: dict[str, Any]
    receiver: OtlpReceiver
    airflow: Airflow


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Running]:
    receiver = OtlpReceiver()
    settings = {
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([*bundles(project=None, shop=SHOP_DAGS)]),
        "AIRFLOW__METRICS__OTEL_ON": "True",
        "AIRFLOW__TRACES__OTEL_ON": "True",
        "OTEL_TRACES_EXPORTER": "otlp_proto_http",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta",
        "OTEL_METRIC_EXPORT_INTERVAL": "5000",
    }
    services = ("postgres", "kafka", "airflow")
    stack = start_stack(tmp_path_factory.mktemp("telemetry"), services, environment=settings)
    environment = {**os.environ, **stack.environment()}
    subprocess.run([sys.executable, "-m", "tests.e2e.shop"], cwd=PROJECT, env=environment, check=True)
    airflow = Airflow(**stack.endpoints()["airflow"])
    airflow.start(DAG, "maintain")
    yield Running(stack.endpoints(), receiver, airflow)
    airflow.close()
    stack.remove()
    receiver.shutdown()


def test_a_message_is_counted_and_its_trace_goes_on(running: Running):
    lane = Lane(running.endpoints, DAG, (ORDERS, BOOKED))
    key, value = ORDERS.serialize(Order(version=1, number=uuid.uuid4().hex, customer="c-1", amount=5))
    sent: list[tuple[str, int, int]] = []
    producer = producer_to(running.endpoints["kafka"]["client_config"], ORDERS.name)
    for content in (value, b"not JSON"):
        producer.produce(
            ORDERS.name,
            key=key,
            value=content,
            headers=[("traceparent", TRACEPARENT)],
            on_delivery=lambda _, record: sent.append((record.topic(), record.partition(), record.offset())),
        )
    producer.flush(30)
    outcomes = {outcome for outcome, _ in lane.wait_for_inbox(sent, 120).values()}
    assert outcomes == {"handled", "dead_letter"}

    receiver, of = running.receiver, {metrics.CONSUMER: DAG, metrics.TOPIC: ORDERS.name}

    def total(metric: metrics.Metric, **more: str) -> float:
        return sum(number for got, number in receiver.values(f"airflow.{metric.name}") if got == {**of, **more})

    wait_for(lambda: total(metrics.MESSAGES, outcome="handled") == 1, 60, "the handled message is counted")
    assert total(metrics.MESSAGES, outcome="dead_letter") == 1
    assert total(metrics.DEAD_LETTERS, reason="not_json") == 1
    assert total(metrics.CONSUMED, **{metrics.SYSTEM: "kafka"}) == 2

    def links() -> list[str]:
        return [
            f"{link.trace_id.hex()} {link.span_id.hex()}"
            for span in list(receiver.spans)
            if span.name == "worker.claim"
            for link in span.links
        ]

    wait_for(lambda: f"{TRACE} {SPAN}" in links(), 60, "the span of the task is linked to the sender's")
    (announced,) = lane.records(BOOKED.name)
    assert dict(announced.headers())["traceparent"] == TRACEPARENT
    (letter,) = lane.records(ORDERS.dead_letter_name)
    assert dict(letter.headers())["traceparent"] == TRACEPARENT


def test_maintain_sends_the_gauges(running: Running):
    run = running.airflow.ask("POST", "/dags/maintain/dagRuns", logical_date=None)["dag_run_id"]
    running.airflow.wait_for_success(run, "maintain", 300)
    kinds = {got["kind"] for got, _ in running.receiver.values(f"airflow.{metrics.ALARMS.name}")}
    assert set(AlarmKind) <= kinds
    assert running.receiver.values(f"airflow.{metrics.OPEN_CLAIMS.name}")
    assert running.receiver.values(f"airflow.{metrics.OUTBOX.name}")
