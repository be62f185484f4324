"""From the USGS format to events, without Kafka and without a database."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.streams.contracts import ContractViolation, Reason
from include.water.feeds import seismic
from include.water.simulators.feed_server import server
from include.water.simulators.quakes import Quakes
from include.water.topics import SEISMIC_EVENTS, ReviewStatus

# As documented at https://earthquake.usgs.gov/earthquakes/feed/v1.0/geojson.php, all fields.
FEATURE: dict[str, Any] = {
    "type": "Feature",
    "properties": {
        "mag": 2.41,
        "place": "7 km NW of The Geysers, CA",
        "time": 1763823600120,
        "updated": 1763823700345,
        "tz": None,
        "url": "https://earthquake.usgs.gov/earthquakes/eventpage/nc75000001",
        "detail": "https://earthquake.usgs.gov/earthquakes/feed/v1.0/detail/nc75000001.geojson",
        "felt": None,
        "cdi": None,
        "mmi": None,
        "alert": None,
        "status": "automatic",
        "tsunami": 0,
        "sig": 89,
        "net": "nc",
        "code": "75000001",
        "ids": ",nc75000001,",
        "sources": ",nc,",
        "types": ",nearby-cities,origin,phase-data,",
        "nst": 21,
        "dmin": 0.008,
        "rms": 0.05,
        "gap": 71,
        "magType": "md",
        "type": "earthquake",
        "title": "M 2.4 - 7 km NW of The Geysers, CA",
    },
    "geometry": {"type": "Point", "coordinates": [-122.8235, 38.8268, 1.75]},
    "id": "nc75000001",
}


def feature(edit: Callable[[dict[str, Any]], object] = lambda feature: None) -> dict[str, Any]:
    changed = copy.deepcopy(FEATURE)
    edit(changed)
    return changed


def test_a_feature_becomes_an_event():
    event = seismic.to_event(feature())
    assert event.model_dump() == {
        "version": 1,
        "seismic_id": "nc75000001",
        "updated_at": datetime(2025, 11, 22, 15, 1, 40, 345_000, tzinfo=UTC),
        "occurred_at": datetime(2025, 11, 22, 15, 0, 0, 120_000, tzinfo=UTC),
        "magnitude": 2.41,
        "magnitude_type": "md",
        "depth_km": 1.75,
        "latitude": 38.8268,
        "longitude": -122.8235,
        "place": "7 km NW of The Geysers, CA",
        "status": ReviewStatus.automatic,
        "kind": "earthquake",
    }
    assert event.event_id == "nc75000001@2025-11-22T15:01:40.345000Z"


@pytest.mark.parametrize("name", ["mag", "magType", "place"])
def test_values_that_the_feed_does_not_know_yet_may_be_null(name: str):
    assert seismic.to_event(feature(lambda f: f["properties"].update({name: None})))


def test_a_depth_may_be_unknown():
    assert seismic.to_event(feature(lambda f: f["geometry"]["coordinates"].pop())).depth_km is None


@pytest.mark.parametrize(
    ("edit", "reason", "field"),
    [
        (lambda f: f.pop("id"), Reason.missing_field, "seismic_id"),
        (lambda f: f.pop("properties"), Reason.missing_field, "updated_at"),
        (lambda f: f.update(geometry=None), Reason.missing_field, "latitude"),
        (lambda f: f["geometry"].update(coordinates=[1.0]), Reason.missing_field, "latitude"),
        (lambda f: f["properties"].pop("mag"), Reason.missing_field, "magnitude"),
        (lambda f: f["properties"].update(mag="2.41"), Reason.wrong_type, "magnitude"),
        (lambda f: f["properties"].update(time="1763823600120"), Reason.wrong_type, "occurred_at"),
        (lambda f: f["properties"].update(time=True), Reason.wrong_type, "occurred_at"),
        (lambda f: f["properties"].update(time=10**30), Reason.wrong_type, "occurred_at"),
        (lambda f: f["properties"].update(time=-1), Reason.out_of_bounds, "occurred_at"),
        (lambda f: f["properties"].update(mag=12), Reason.out_of_bounds, "magnitude"),
        (lambda f: f["geometry"]["coordinates"].insert(1, 91), Reason.out_of_bounds, "latitude"),
        (lambda f: f["properties"].update(place="x\u0000y"), Reason.out_of_bounds, "place"),
        (lambda f: f["properties"].update(status="guessed"), Reason.out_of_bounds, "status"),
        (lambda f: f["properties"].update(mag=float("nan")), Reason.not_json, ""),
        (lambda f: f["properties"].update(place="\ud800"), Reason.not_json, ""),
    ],
)
def test_a_feature_that_breaks_the_contract_is_refused_with_the_field(
    edit: Callable[[dict[str, Any]], object], reason: Reason, field: str
):
    with pytest.raises(ContractViolation) as caught:
        seismic.to_event(feature(edit))
    assert caught.value.reason is reason
    assert field in caught.value.detail
    assert seismic.digest(feature(edit)) != seismic.digest(feature())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(json_values, st.sampled_from(list(FEATURE["properties"])), json_values)
def test_every_feature_is_an_event_or_a_violation(any_feature: Any, name: str, value: Any):
    features = [any_feature, feature(lambda f: f["properties"].update({name: value})), [], None, {"properties": 1}]
    events, rejected = seismic.split(features)
    assert len(events) <= 1
    assert len(events) + len(rejected) <= len(features)
    assert all(seismic.dead_letter_of(*item).message.value for item in rejected.values())


def test_a_broken_feature_does_not_stop_the_others():
    events, rejected = seismic.split([feature(), None, feature(lambda f: f.update(id="nc75000002"))])
    assert sorted(event.seismic_id for event in events.values()) == ["nc75000001", "nc75000002"]
    assert len(rejected) == 1


def test_the_same_revision_twice_in_a_feed_is_one_event():
    events, rejected = seismic.split([feature(), feature(), None, None])
    assert len(events) == len(rejected) == 1


def test_a_huge_broken_feature_is_cut_for_its_dead_letter():
    huge = feature(lambda f: f["properties"].update(mag="9" * 10**7))
    (rejected,) = seismic.split([huge])[1].values()
    letter = seismic.dead_letter_of(*rejected)
    assert letter.message.value
    assert len(letter.message.value) < int(SEISMIC_EVENTS.dead_letter_config()["max.message.bytes"])
    assert letter.detail.startswith("too_large: 100")


@contextmanager
def serving(http_server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The connection `seismic_feed` leads to this server."""
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("AIRFLOW_CONN_SEISMIC_FEED", f"http://127.0.0.1:{http_server.server_address[1]}")
    try:
        yield
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()


def answering(write: Callable[[BaseHTTPRequestHandler], object]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            write(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def body(status: int, content: bytes) -> Callable[[BaseHTTPRequestHandler], object]:
    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.end_headers()
        handler.wfile.write(content)

    return write


def test_a_feed_is_read_through_the_connection(monkeypatch: pytest.MonkeyPatch):
    now = datetime.now(UTC)
    quakes = Quakes(seed=3, since=now - timedelta(hours=2), interval_seconds=60)
    with serving(server(0, quakes), monkeypatch):
        day, hour = seismic.fetch("all_day"), seismic.fetch("all_hour")
    assert len(hour) < len(day)
    events, rejected = seismic.split(day)
    assert len(events) == len(day)
    assert not rejected


def test_an_unknown_feed_is_refused():
    with pytest.raises(ValueError, match=r"no feed '\.\./secret'; one of all_day"):
        seismic.fetch("../secret")


@pytest.mark.parametrize(
    ("status", "content", "complaint"),
    [
        (404, b"{}", "answered 404"),
        (503, b"{}", "answered 503"),
        (200, b"<html>", "did not send JSON"),
        (200, b"[" * 100_000, "did not send JSON"),
        (200, b"[]", "no list of features"),
        (200, b'{"features": {}}', "no list of features"),
    ],
)
def test_a_response_that_is_no_feed_fails_the_task(
    status: int, content: bytes, complaint: str, monkeypatch: pytest.MonkeyPatch
):
    with (
        serving(answering(body(status, content)), monkeypatch),
        pytest.raises(seismic.FeedUnreadable, match=complaint) as caught,
    ):
        seismic.fetch("all_day")
    assert "connection seismic_feed" in str(caught.value)


def test_a_too_large_feed_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seismic, "MAX_FEED_BYTES", 200_000)
    content = json.dumps({"features": [], "padding": "x" * 300_000}).encode()
    with (
        serving(answering(body(200, content)), monkeypatch),
        pytest.raises(seismic.FeedUnreadable, match="larger than 200000 bytes"),
    ):
        seismic.fetch("all_day")


def test_a_slow_feed_fails_after_a_total_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seismic, "TOTAL_SECONDS", 0.2)

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        done = threading.Event()
        for _ in range(50):
            try:
                handler.wfile.write(b" " * 70_000)
            except OSError:
                return
            done.wait(0.05)

    with (
        serving(answering(trickle), monkeypatch),
        pytest.raises(seismic.FeedUnreadable, match=r"more than 0\.2 s"),
    ):
        seismic.fetch("all_day")


def test_an_unreachable_server_is_a_retriable_error(monkeypatch: pytest.MonkeyPatch):
    away = answering(body(200, b""))
    away.server_close()
    monkeypatch.setenv("AIRFLOW_CONN_SEISMIC_FEED", f"http://127.0.0.1:{away.server_address[1]}")
    with pytest.raises(OSError, match="refused"):
        seismic.fetch("all_day")
