"""Metrics: what each backend of Airflow gets, and that the files of docs/ and deploy/ fit."""

from __future__ import annotations

import atexit
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace

import pytest
import yaml
from airflow.sdk._shared.observability.metrics import otel_logger
from opentelemetry.metrics import get_meter_provider
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from include.streams.operations import metrics
from tests.collector import OtlpReceiver, attributes_of, initialized, listening
from tests.conftest import PROJECT

MONITORING = PROJECT / "deploy" / "monitoring"
RECORDED = re.compile(r"\bairflow_[a-z_]+")
SUFFIXES = {
    metrics.Gauge: ("",),
    metrics.Counter: ("_total",),
    # Milliseconds from OpenTelemetry, seconds from statsd_exporter.
    metrics.Duration: tuple(f"_{unit}_{part}" for unit in ("milliseconds", "seconds") for part in ("sum", "count")),
}


@pytest.fixture(autouse=True)
def backend_is_read_again() -> Iterator[None]:
    metrics._backend.cache_clear()
    metrics._failures.clear()
    yield
    metrics._backend.cache_clear()
    metrics._failures.clear()


def prometheus_names() -> dict[str, metrics.Metric]:
    names = {}
    for metric in metrics.ALL:
        for suffix in SUFFIXES[type(metric)]:
            names["airflow_" + metric.name.replace(".", "_") + suffix] = metric
    return names


def set_metrics(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"AIRFLOW__METRICS__{name.upper()}", value)


def test_plain_statsd_has_the_values_in_the_name(monkeypatch):
    set_metrics(monkeypatch, statsd_on="True")
    name, tags = metrics.named(metrics.MESSAGES, ("book_orders", "shop.orders", "handled"))
    assert (name, tags) == ("streams.messages.book_orders.shop__orders.handled", {})


def test_with_tags_the_name_has_no_values(monkeypatch):
    set_metrics(monkeypatch, statsd_on="True", statsd_influxdb_enabled="True")
    name, tags = metrics.named(metrics.CONSUMED, ("book_orders", "shop.orders"))
    assert name == "messaging.client.consumed.messages"
    assert tags == {metrics.SYSTEM: "kafka", metrics.CONSUMER: "book_orders", metrics.TOPIC: "shop.orders"}


def test_open_telemetry_keeps_long_names(monkeypatch):
    set_metrics(monkeypatch, otel_on="True")
    topic = "t" * 249
    assert metrics.named(metrics.LAG, ("c", topic))[1][metrics.TOPIC] == topic


@pytest.mark.parametrize("tagged", ["True", "False"])
@pytest.mark.parametrize("metric", metrics.ALL, ids=lambda metric: metric.name)
def test_every_name_fits_into_statsd_with_the_longest_values(metric: metrics.Metric, tagged: str, monkeypatch):
    from airflow.sdk._shared.observability.metrics.validators import stat_name_default_handler

    set_metrics(monkeypatch, statsd_on="True", statsd_influxdb_enabled=tagged)
    longest = [
        ("c" * 300 if name in (metrics.CONSUMER, metrics.TOPIC) else "landing_stalled") for name in metric.attributes
    ]
    name, tags = metrics.named(metric, tuple(longest))
    written = name + "".join(f",{key}={value}" for key, value in tags.items())
    stat_name_default_handler(written, allowed_chars={*map(chr, range(33, 127))})


def test_values_have_only_characters_that_statsd_takes():
    assert metrics.plain("a b,c=d|e:f\n", 64) == "a_b_c_d_e_f_"
    first, second = ("x" * 80 + end for end in "ab")
    assert metrics.plain(first, 64) != metrics.plain(second, 64)
    assert len(metrics.plain(first, 64)) == 64


def test_a_failure_is_logged_once_and_raises_nothing(monkeypatch, caplog):
    def broken(*_, **__):
        raise OSError("no collector")

    monkeypatch.setattr(metrics, "_stats", lambda: SimpleNamespace(incr=broken, gauge=broken, timing=broken))
    for _ in range(3):
        metrics.MESSAGES.add(1, "c", "t", "handled")
        metrics.LAG.show(1, "c", "t")
        metrics.PROCESSED.record(timedelta(seconds=1), "c", "t")
    assert [record.args[0] for record in caplog.records] == [  # type: ignore[index]
        metrics.MESSAGES.name,
        metrics.LAG.name,
        metrics.PROCESSED.name,
    ]


def test_a_statsd_listener_gets_every_kind():
    with listening(statsd_influxdb_enabled="True") as listener:
        metrics.MESSAGES.add(3, "book", "shop.orders", "handled")
        metrics.LAG.show(7, "book", "shop.orders")
        metrics.OLDEST_CLAIM.show(timedelta(minutes=2), "book")
        metrics.PROCESSED.record(timedelta(milliseconds=250), "book", "shop.orders")
        got = listener.lines(4)
    of = "messaging.consumer.group.name=book,messaging.destination.name=shop.orders"
    assert got == [
        f"airflow.streams.messages,{of},outcome=handled:3|c",
        f"airflow.streams.consumer.lag,{of}:7|g",
        "airflow.streams.consumer.oldest_claim.age,messaging.consumer.group.name=book:120.0|g",
        f"airflow.messaging.process.duration,messaging.system=kafka,{of}:250.000000|ms",
    ]


def test_an_open_telemetry_collector_gets_every_kind(monkeypatch):
    """Over OTLP, from the client that Airflow creates."""
    receiver = OtlpReceiver()
    set_metrics(monkeypatch, otel_on="True")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    with initialized():
        metrics.MESSAGES.add(3, "book", "shop.orders", "handled")
        metrics.LAG.show(7, "book", "shop.orders")
        metrics.PROCESSED.record(timedelta(milliseconds=250), "book", "shop.orders")
        provider = get_meter_provider()
        # As Airflow does when a task's process ends.
        assert provider.force_flush()  # type: ignore[attr-defined]
        provider.shutdown()  # type: ignore[attr-defined]
        # It would be called again when pytest ends.
        atexit.unregister(otel_logger.flush_otel_metrics)
    receiver.shutdown()
    sent = {metric.name: metric for metric in receiver.metrics}
    (messages,) = sent["airflow.streams.messages"].sum.data_points
    assert (messages.as_int, attributes_of(messages)) == (
        3,
        {metrics.CONSUMER: "book", metrics.TOPIC: "shop.orders", "outcome": "handled"},
    )
    assert sent["airflow.streams.messages"].sum.aggregation_temporality == AggregationTemporality.Value(
        "AGGREGATION_TEMPORALITY_DELTA"
    )
    (lag,) = sent["airflow.streams.consumer.lag"].gauge.data_points
    assert (lag.as_int or lag.as_double, attributes_of(lag)) == (
        7,
        {metrics.CONSUMER: "book", metrics.TOPIC: "shop.orders"},
    )
    duration = sent["airflow.messaging.process.duration"]
    (took,) = duration.exponential_histogram.data_points
    assert (duration.unit, took.count, took.sum) == ("ms", 1, 250)
    assert attributes_of(took)[metrics.SYSTEM] == "kafka"


def test_the_page_lists_every_metric():
    rows = [
        f"| `{metric.name}` | {type(metric).__name__.lower()} | {metric.unit} | "
        f"{', '.join(f'`{name}`' for name in metric.attributes)} | {metric.meaning} |"
        for metric in metrics.ALL
    ]
    page = (PROJECT / "docs" / "metrics.md").read_text()
    missing = [row for row in rows if row not in page]
    assert not missing, "add to docs/metrics.md:\n" + "\n".join(missing)
    assert page.count("\n| `") == len(rows), "docs/metrics.md lists a metric that does not exist"


def test_the_dashboard_names_existing_metrics_and_attributes_of():
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    check_expressions(expressions)
    used = {prometheus_names()[name] for text in expressions for name in RECORDED.findall(text)}
    assert used == set(metrics.ALL), "each metric has a panel"
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            check_expressions([variable["definition"]])


def test_the_alert_rules_have_prometheus_structure_and_existing_names():
    loaded = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    assert set(loaded) == {"groups"}
    rules = [rule for group in loaded["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 5
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert re.fullmatch(r"\d+[smhd]", rule.get("for", "1m"))
        assert (PROJECT / rule["annotations"]["runbook"]).is_file()
    check_expressions([rule["expr"] for rule in rules])


def test_the_statsd_mappings_lead_to_the_names_of_dashboard_and_alerts():
    mappings = yaml.safe_load((MONITORING / "statsd_mappings.yml").read_text())["mappings"]
    by_match = {mapping["match"]: mapping for mapping in mappings}
    assert len(by_match) == len(mappings) == 2 * len(metrics.ALL)
    for metric in metrics.ALL:
        tagged = by_match[f"airflow.{metric.name}"]
        plain = by_match[f"airflow.{metric.name}{'.*' * len(metric.attributes)}"]
        assert tagged["name"] == plain["name"]
        assert any(name in (tagged["name"], f"{tagged['name']}_sum") for name in prometheus_names())
        labels = {name.replace(".", "_"): f"${number}" for number, name in enumerate(metric.attributes, 1)}
        assert plain["labels"] == labels


def check_expressions(expressions: list[str]) -> None:
    """Each names only metrics that are sent, and only labels that all of its metrics have; brackets are balanced."""
    assert expressions
    names = prometheus_names()
    for text in expressions:
        used = RECORDED.findall(text)
        assert used, text
        assert set(used) <= set(names), text
        for pair in ("()", "[]", "{}"):
            assert text.count(pair[0]) == text.count(pair[1]), text
        labels = {name.replace(".", "_") for metric in used for name in names[metric].attributes}
        grouped = {name.strip() for part in re.findall(r"\bby \(([^)]*)\)", text) for name in part.split(",")}
        matched = set(re.findall(r"[{,]\s*([a-z_]+)\s*=~?", text))
        assert grouped | matched <= labels, text
