"""The simulated sources: the same for the same seed, and their reports match the sent messages."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from random import Random
from typing import get_args

import pytest

from include.streams.contracts import ContractViolation, Reason
from include.streams.contracts.__main__ import PROJECT
from include.streams.formats.errors import FormatReason
from include.water.alerts.rules import assess
from include.water.feeds.seismic import split
from include.water.repairs import REPAIRS
from include.water.simulators import traffic
from include.water.simulators.__main__ import main
from include.water.simulators.quakes import REVISED_AFTER_SECONDS, WITHDRAWN_AFTER_SECONDS, Quakes
from include.water.topics import LEAKS_DETECTED, SEISMIC_EVENTS, SERVICE_REQUESTS, TOPICS

START = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def quakes(**changes) -> Quakes:
    return Quakes(**{"seed": 1, "since": START, "interval_seconds": 10.0, **changes})


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_the_same_seed_shows_the_same_quakes_and_another_seed_others():
    assert quakes().features(after(600), DAY) == quakes().features(after(600), DAY)
    assert quakes(seed=2).features(after(600), DAY) != quakes().features(after(600), DAY)


def test_a_server_that_was_restarted_shows_the_same_quakes():
    before = quakes().features(after(600), DAY)
    restarted = quakes(since=after(300)).features(after(600), DAY)
    assert restarted
    assert all(feature in before for feature in restarted)


def test_every_feature_is_valid_and_some_are_alerts():
    events, rejected = split(quakes().features(after(86_400), DAY))
    assert not rejected
    assert len(events) > 8_000
    alerts = [alert for alert in map(assess, events.values()) if alert]
    assert 0.02 < len(alerts) / len(events) < 0.4
    assert len({alert.severity for alert in alerts}) == 3


def test_a_quake_has_revisions():
    seen = {}
    for second in range(0, max(REVISED_AFTER_SECONDS) + 20):
        for event in split(quakes().features(after(second), DAY))[0].values():
            seen.setdefault(event.seismic_id, {})[event.updated_at] = event
    first = min(seen.values(), key=lambda revisions: min(revisions))
    assert len(first) == len(REVISED_AFTER_SECONDS)
    assert len({event.occurred_at for event in first.values()}) == 1
    assert len({event.magnitude for event in first.values()}) > 1
    assert [first[updated].status for updated in sorted(first)] == ["automatic"] * 3 + ["reviewed"]


def test_a_quake_is_not_shown_before_it_is_published():
    assert quakes().features(after(REVISED_AFTER_SECONDS[0] - 1), DAY) == []
    assert len(quakes().features(after(REVISED_AFTER_SECONDS[0]), DAY)) == 1


def test_some_quakes_are_withdrawn():
    shown = {feature["id"] for feature in quakes().features(after(3_600), DAY)}
    later = {feature["id"] for feature in quakes().features(after(3_600 + WITHDRAWN_AFTER_SECONDS), DAY)}
    assert 0 < len(shown - later) < len(shown) / 10


def test_a_feed_has_the_requested_period():
    assert len(quakes().features(after(7200), timedelta(hours=1))) < len(quakes().features(after(7200), DAY))


def test_features_are_broken_in_every_known_way():
    shown = quakes(bad_every=5).features(after(3600), DAY)
    events, rejected = split(shown)
    assert len(rejected) == pytest.approx(len(shown) / 5, abs=3)
    assert {violation.reason for _, violation in rejected.values()} == {
        Reason.wrong_type,
        Reason.missing_field,
        Reason.out_of_bounds,
    }
    assert len(events) + len(rejected) == len(shown)


def test_simulated_messages_keep_their_contracts_and_are_all_different():
    for topic, events in (
        ("leaks.detected", traffic.leaks),
        ("service.requests", traffic.service_requests),
        ("meter.readings", traffic.meter_readings),
    ):
        some = list(islice(events(Random(1)), 3_000))
        assert all(TOPICS[topic].serialize(event) for event in some)
        assert len({event.event_id for event in some}) == len(some)


def test_some_leaks_are_alerts_of_each_severity():
    alerts = [alert for alert in map(assess, islice(traffic.leaks(Random(1)), 2_000)) if alert]
    assert 0.2 < len(alerts) / 2_000 < 0.9
    assert len({alert.severity for alert in alerts}) == 3


class FakeBroker:
    """A producer that acknowledges everything except the messages of one topic."""

    def __init__(self) -> None:
        self.refuses: str | None = None
        self.messages: list[tuple[str, bytes | None, bytes | None]] = []

    def producer(self) -> FakeProducer:
        return FakeProducer(self)


class FakeProducer:
    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.acknowledged = 0
        self.refused = 0

    def send(self, topic: str, *, key: bytes | None, value: bytes | None) -> None:
        if topic == self.broker.refuses:
            self.refused += 1
            return
        self.broker.messages.append((topic, key, value))
        self.acknowledged += 1

    def flush(self) -> None:
        if self.refused:
            raise traffic.DeliveryFailed(f"{self.refused} messages")


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


def is_good(topic: str, value: bytes | None) -> bool:
    try:
        TOPICS[topic].parse(value)
    except ContractViolation:
        return False
    return True


def make_traffic(broker: FakeBroker, report: Path, **changes) -> traffic.Traffic:
    rates = {"leaks.detected": 200.0, "meter.readings": 50.0, "service.requests": 0.0}
    return traffic.Traffic(
        **{"seconds": 0.6, "report": report, "rates": rates, "make_producer": broker.producer, **changes}
    )


def test_the_report_counts_what_was_sent(tmp_path: Path, broker: FakeBroker):
    assert make_traffic(broker, tmp_path / "report.json", bad=2).run()
    report = json.loads((tmp_path / "report.json").read_text())
    messages = broker.messages
    for name in ("leaks.detected", "meter.readings"):
        good = sum(1 for topic, _, value in messages if topic == name and is_good(topic, value))
        assert report["sent"][name] == good > 0
    for topic in traffic.BAD_TOPICS:
        bad = sum(1 for name, _, value in messages if name == topic.name and not is_good(name, value))
        # The requests have one more bad message, which a repair can fix.
        assert report["planted_bad"][topic.name] == bad == 2 * (10 if topic is SERVICE_REQUESTS else 9)
    assert "service.requests" not in report["sent"]
    assert report["repeated"]["leaks.detected"] > 0
    assert report["finished"] is True
    assert os.listdir(tmp_path) == ["report.json"]


def test_some_leaks_are_sent_twice(tmp_path: Path, broker: FakeBroker):
    make_traffic(broker, tmp_path / "report.json", bad=0).run()
    leaks = [value for topic, _, value in broker.messages if topic == "leaks.detected"]
    assert len(leaks) - len(set(leaks)) == len(set(leaks)) // traffic.REPEAT_EVERY > 0


def test_a_bad_message_of_every_kind_is_planted(tmp_path: Path, broker: FakeBroker):
    make_traffic(broker, tmp_path / "report.json").run()
    for planted_in in (LEAKS_DETECTED, SEISMIC_EVENTS):
        reasons = []
        for topic, key, value in broker.messages:
            if topic == planted_in.name and not is_good(topic, value):
                assert key
                with pytest.raises(ContractViolation) as caught:
                    planted_in.parse(value)
                reasons.append(caught.value.reason)
        assert sorted(reasons) == sorted(set(Reason) - {Reason.conflict, Reason.rejected, *get_args(FormatReason)})


def test_a_repairable_request_of_an_old_app_is_planted(tmp_path: Path, broker: FakeBroker):
    make_traffic(broker, tmp_path / "report.json").run()
    values = [value for topic, _, value in broker.messages if topic == SERVICE_REQUESTS.name]
    (old,) = [value for value in values if value and b'"message"' in value]
    assert not is_good(SERVICE_REQUESTS.name, old)
    assert is_good(SERVICE_REQUESTS.name, REPAIRS.apply(SERVICE_REQUESTS, old).value)


def test_unacknowledged_messages_are_not_counted_and_fail_the_run(tmp_path: Path, broker: FakeBroker):
    broker.refuses = "meter.readings"
    assert not make_traffic(broker, tmp_path / "report.json").run()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sent"]["meter.readings"] == 0
    assert report["sent"]["leaks.detected"] > 0


def test_a_run_stopped_early_reports_its_messages(tmp_path: Path, broker: FakeBroker):
    stopped = make_traffic(broker, tmp_path / "report.json", seconds=3_600)
    stopped.stop.set()
    assert stopped.run()
    assert json.loads((tmp_path / "report.json").read_text())["finished"] is True


def simulator(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "include.water.simulators", *arguments]
    return subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True)


def wait_for_feed(url: str) -> bytes:
    until = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_feed_is_served_until_sigterm(stop: signal.Signals):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = simulator("serve-feed", "--port", str(port))
    try:
        url = f"http://127.0.0.1:{port}/earthquakes/feed/v1.0/summary/all_day.geojson"
        document = json.loads(wait_for_feed(url))
        assert document["type"] == "FeatureCollection"
        assert document["metadata"]["count"] == len(document["features"]) > 10
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(url.replace("all_day", "all_year"), timeout=5)
        taken = simulator("serve-feed", "--port", str(port))
        assert taken.communicate(timeout=20)[1] == f"port {port}: Address already in use; choose another with --port\n"
        assert taken.returncode == 1
        process.send_signal(stop)
        process.communicate(timeout=10)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["run", "--report", "r.json"],
        ["run", "--for", "0", "--report", "r.json"],
        ["run", "--for", "5", "--report", "r.json", "--rate", "nothing=1"],
        ["run", "--for", "5", "--report", "r.json", "--rate", "leaks.detected"],
        ["send-history", "--days", "-1"],
        ["send-history", "--interval-minutes", "7"],
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err
