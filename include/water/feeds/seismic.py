"""The earthquake feed of the United States Geological Survey (USGS): from an HTTP response to messages.

Format: https://earthquake.usgs.gov/earthquakes/feed/v1.0/geojson.php

Delivery is at least once: an event is recorded as published only after the broker has acknowledged it. A crash in
between produces the event twice, with the same event id, and never loses an event.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from include.streams import ContractViolation, Reason
from include.water.topics import SEISMIC_EVENTS, SeismicEvent

if TYPE_CHECKING:
    from include.streams.kafka.dead_letters import DeadLetter

log = logging.getLogger(__name__)

CONN_ID = "seismic_feed"
PATH = "/earthquakes/feed/v1.0/summary/{feed}.geojson"
# Each feed has the events of the last day, hour, week or month. The default is a day, so that an outage of hours loses
# nothing, and revisions that come hours later are seen. The longer feeds are for manual runs after a longer outage.
FEEDS = ("all_day", "all_hour", "all_week", "all_month")

CONNECT_SECONDS, READ_SECONDS = 5, 20
# A server that sends a byte now and then would never exceed the read timeout.
TOTAL_SECONDS = 60
# The feed of a month has about 10,000 events of 800 bytes; a much larger response is not this feed.
MAX_FEED_BYTES = 32 * 1024 * 1024
# The events pass through XCom, which is a row of Airflow's database. The next run sends the rest.
MAX_EVENTS_PER_RUN = 1_000
# The rest of a larger broken feature is cut off: the dead-letter topic would refuse it.
MAX_REJECTED_BYTES = 256 * 1024


CONSUMER = "ingest_seismic_feed"
Event = dict[str, str]  # {"event_id", "key", "value"}: a message on its way through XCom
Rejected = tuple[Any, ContractViolation]  # a feature and what is wrong with it


class FeedUnreadable(Exception):
    """The feed's response is not a GeoJSON feed; a retry may help."""


def read_new_events(feed: str, run_id: str) -> list[Event]:
    """Read the events of the feed that are not in Kafka yet.

    A feature that breaks the contract becomes a dead letter, once for each content with which the feed shows it.

    Args:
        feed: One of FEEDS.
        run_id: The Dag run.

    Returns:
        At most MAX_EVENTS_PER_RUN events, oldest first.

    Raises:
        FeedUnreadable: The response is not a feed.
        Exception: What the HTTP client, Kafka or the database raise.
    """
    events, rejected = split(fetch(feed))
    known = published([*events, *rejected])
    if new_rejected := [rejected[identity] for identity in rejected.keys() - known][:MAX_EVENTS_PER_RUN]:
        _publish_rejected(new_rejected, run_id)
    new = [event for identity, event in events.items() if identity not in known]
    new.sort(key=lambda event: (event.updated_at, event.event_id))
    counts = len(events) + len(rejected), len(new), len(new_rejected)
    log.info("feed read: feed=%s features=%d new=%d rejected=%d", feed, *counts)
    return [_message(event) for event in new[:MAX_EVENTS_PER_RUN]]


def messages(events: Sequence[Event]) -> Iterator[tuple[bytes, bytes]]:
    """The (key, value) pairs for `ProduceToTopicOperator`."""
    return ((event["key"].encode(), event["value"].encode()) for event in events)


def record_published(event_ids: Iterable[str]) -> None:
    """Record that these events are in Kafka. `include/water/retention.py` says how long the records are kept."""
    from sqlalchemy.dialects.postgresql import insert

    from include.streams import begin
    from include.water.tables import published_seismic_events

    rows = [{"event_id": event_id} for event_id in sorted(set(event_ids))]
    with begin() as connection:
        if rows:
            connection.execute(insert(published_seismic_events).on_conflict_do_nothing(), rows)


def published(event_ids: Iterable[str]) -> set[str]:
    """Which of these ids are already in Kafka."""
    from sqlalchemy import Text, any_, cast, select
    from sqlalchemy.dialects.postgresql import ARRAY

    from include.streams import begin
    from include.water.tables import published_seismic_events

    # One array: separate parameters are limited to 65,535.
    asked = cast(list(event_ids), ARRAY(Text))
    event_id = published_seismic_events.c.event_id
    with begin() as connection:
        return set(connection.scalars(select(event_id).where(event_id == any_(asked))))


def fetch(feed: str, conn_id: str = CONN_ID) -> list[Any]:
    """Fetch the features of a feed, unchecked.

    Args:
        feed: One of FEEDS.
        conn_id: The Airflow HTTP connection of the feed.

    Raises:
        ValueError: The feed is unknown.
        FeedUnreadable: The response is not a feed, too large or too slow.
        Exception: What the HTTP client raises when the server cannot be reached.
    """
    if feed not in FEEDS:
        raise ValueError(f"no feed {feed!r}; one of {', '.join(FEEDS)}")
    from airflow.providers.http.hooks.http import HttpHook

    hook = HttpHook(method="GET", http_conn_id=conn_id)
    session = hook.get_conn({"Accept": "application/geo+json, application/json"})
    url = hook.base_url.rstrip("/") + PATH.format(feed=feed)
    deadline = time.monotonic() + TOTAL_SECONDS
    with session, session.get(url, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as answer:
        if answer.status_code != 200:
            raise FeedUnreadable(f"connection {conn_id}: {url} answered {answer.status_code}")
        content = bytearray()
        for block in answer.iter_content(64 * 1024):
            content += block
            if len(content) > MAX_FEED_BYTES:
                raise FeedUnreadable(f"connection {conn_id}: {url} is larger than {MAX_FEED_BYTES} bytes")
            if time.monotonic() > deadline:
                raise FeedUnreadable(f"connection {conn_id}: {url} took more than {TOTAL_SECONDS} s")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise FeedUnreadable(f"connection {conn_id}: {url} did not send JSON") from None
    features = document.get("features") if isinstance(document, dict) else None
    if not isinstance(features, list):
        raise FeedUnreadable(f"connection {conn_id}: {url} sent no list of features")
    return features


def split(features: Iterable[Any]) -> tuple[dict[str, SeismicEvent], dict[str, Rejected]]:
    """Separate features that keep the contract from those that break it.

    Args:
        features: The features of a feed.

    Returns:
        {event id: event} and {digest: (feature, violation)}.
    """
    events: dict[str, SeismicEvent] = {}
    rejected: dict[str, Rejected] = {}
    for feature in features:
        try:
            event = to_event(feature)
        except ContractViolation as violation:
            rejected[digest(feature)] = (feature, violation)
        else:
            events[event.event_id] = event
    return events, rejected


def to_event(feature: Any) -> SeismicEvent:
    """The event that a GeoJSON feature describes.

    Raises:
        ContractViolation: A value has the wrong type; it is passed on unchanged, so that the contract's error names it.
    """
    feature = feature if isinstance(feature, dict) else {}
    properties = feature.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    geometry = feature.get("geometry")
    coordinates = geometry.get("coordinates") if isinstance(geometry, dict) else None
    coordinates = coordinates if isinstance(coordinates, list) else []
    fields = {
        "seismic_id": feature.get("id", ...),
        "updated_at": _time(properties.get("updated", ...)),
        "occurred_at": _time(properties.get("time", ...)),
        "magnitude": properties.get("mag", ...),
        "magnitude_type": properties.get("magType"),
        "longitude": coordinates[0] if coordinates else ...,
        "latitude": coordinates[1] if len(coordinates) > 1 else ...,
        "depth_km": coordinates[2] if len(coordinates) > 2 else None,
        "place": properties.get("place"),
        "status": properties.get("status", ...),
        "kind": properties.get("type", ...),
    }
    document = {"version": 1, **{name: value for name, value in fields.items() if value is not ...}}
    event = SEISMIC_EVENTS.parse(json.dumps(document).encode())
    assert isinstance(event, SeismicEvent)
    return event


def digest(feature: Any) -> str:
    """The key of a rejected feature: a hash of its content, because its id cannot be trusted."""
    return "rejected:" + hashlib.sha256(_raw(feature)).hexdigest()


def _time(value: Any) -> Any:
    """Convert the feed's milliseconds since 1970 to RFC 3339; any other value is returned unchanged."""
    if type(value) is not int:
        return value
    try:
        moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=value)
    except OverflowError:
        return value
    return moment.isoformat()


def _message(event: SeismicEvent) -> Event:
    key, value = SEISMIC_EVENTS.serialize(event)
    return {"event_id": event.event_id, "key": key.decode(), "value": value.decode()}


def _publish_rejected(rejected: Sequence[Rejected], run_id: str) -> None:
    """Publish features that break the contract as dead letters, then record them."""
    from include.streams import begin
    from include.streams.kafka.dead_letters import DeadLetterWriter
    from include.streams.kafka.producer import AcknowledgedProducer

    with AcknowledgedProducer() as producer:
        dead_letters = DeadLetterWriter(CONSUMER, run_id, producer)
        if waiting := dead_letters.publish([dead_letter_of(feature, violation) for feature, violation in rejected]):
            with begin() as connection:
                dead_letters.add_to_outbox(connection, waiting)
    record_published(digest(feature) for feature, _ in rejected)


def dead_letter_of(feature: Any, violation: ContractViolation) -> DeadLetter:
    """The dead letter of a feature; its value is the feature's JSON, at most MAX_REJECTED_BYTES."""
    from include.streams import Message
    from include.streams.kafka.dead_letters import DeadLetter

    raw = _raw(feature)
    detail = violation.detail
    if len(raw) > MAX_REJECTED_BYTES:
        detail = f"{Reason.too_large}: {len(raw)} bytes, the first {MAX_REJECTED_BYTES} are kept; {detail}"
    message = Message(
        topic=SEISMIC_EVENTS.name,
        topic_id="",
        partition=-1,  # the feature was never in Kafka; the header names its source
        offset=-1,
        timestamp=datetime.now(UTC),
        key=None,
        value=raw[:MAX_REJECTED_BYTES],
        headers=(("feed", CONN_ID.encode()),),
    )
    return DeadLetter(message, violation.reason, detail)


def _raw(feature: Any) -> bytes:
    return json.dumps(feature, ensure_ascii=False, sort_keys=True).encode(errors="replace")
