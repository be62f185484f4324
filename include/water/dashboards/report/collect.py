"""Read all data of the report from the tables, the operational database and the bucket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from include.streams.operations.alarm_kinds import AlarmKind
from include.water.consumers import AGGREGATE_METER_READINGS
from include.water.dashboards.report.data import Model, Quality, ReportData, Suite
from include.water.dashboards.report.flows import Flows, read_flows
from include.water.dashboards.report.leaks import read_leaks
from include.water.dashboards.report.unusual import read_unusual
from include.water.flows.definition import TIME_ZONE
from include.water.leaks.model import NAME

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from include.streams.lake.buckets import Bucket
    from include.streams.models.store import Card, ModelHistory


# The period of the readings' counts, and of the events of HOURLY_FLOWS to read.
QUALITY_PERIOD = timedelta(hours=24)
COUNTS = ("landed", "clean", "dead_lettered", "duplicates")


def collect(batches: Iterable[Mapping[str, Any]], now: datetime | None = None) -> ReportData:
    """Collect the report's data as of now.

    Data that do not exist yet are None in the result.

    Args:
        batches: The extras of the HOURLY_FLOWS events of the last QUALITY_PERIOD, with the counts of COUNTS.
        now: The time of the report; by default the current time.

    Raises:
        Exception: What the lake, the database and the bucket raise when they are unavailable; Airflow retries.
    """
    from include.streams.lake.buckets import bucket
    from include.streams.pages.reading import read_only

    now = now or datetime.now(UTC)
    flows = read_flows(now, TIME_ZONE)
    objects = bucket()
    with read_only() as connection:
        leaks = read_leaks(connection, flows, now)
        quality = read_quality(connection, objects, list(batches), flows, now)
    return ReportData(
        computed_at=now,
        timezone=str(TIME_ZONE),
        data_up_to=flows.data_up_to,
        period=flows.period,
        period_ended=flows.period_ended,
        days=flows.days,
        districts=flows.districts,
        leaks=leaks,
        unusual=read_unusual(now, TIME_ZONE),
        quality=quality,
        model=read_model(objects),
    )


def read_quality(
    connection: Connection, objects: Bucket, batches: Sequence[Mapping[str, Any]], flows: Flows, now: datetime
) -> Quality | None:
    """The counts of the readings, the reasons for dead letters, and the suites' last results.

    Args:
        connection: A connection to the operational database.
        objects: The artifacts bucket.
        batches: As for `collect`.
        flows: The flows of the report.
        now: The time of the report.

    Returns:
        The quality; None when there are neither counts nor results.
    """
    from sqlalchemy import func, select

    from include.streams.operations.tables import inbox

    counted = [batch for batch in batches if all(isinstance(batch.get(name), int) for name in COUNTS)]
    suites = read_suites(connection, objects)
    if not counted and not suites:
        return None
    since = now - QUALITY_PERIOD
    query = (
        select(inbox.c.reason, func.count())
        .where(
            inbox.c.consumer == AGGREGATE_METER_READINGS.name,
            inbox.c.outcome == "dead_letter",
            inbox.c.recorded_at >= since,
        )
        .group_by(inbox.c.reason)
        .order_by(func.count().desc(), inbox.c.reason)
    )
    return Quality(
        since,
        **{name: sum(batch[name] for batch in counted) for name in COUNTS},
        reasons=tuple((str(reason or "unknown"), count) for reason, count in connection.execute(query)),
        missing_readings=flows.missing_readings,
        suites=suites,
    )


def read_suites(connection: Connection, objects: Bucket) -> tuple[Suite, ...]:
    """The last result that let a run continue, and the results of stopped runs that still wait for a person.

    Only of this report's readings: other topics of the project have suites of their own.
    """
    from include.streams.operations.alarms import open_alarms
    from include.streams.validators.results import FOLDER, PAST, RESULT, folder

    name = AGGREGATE_METER_READINGS.name
    # An alarm without a key names no claim, so it has no result.
    keys = [
        (name, alarm.key)
        for alarm in open_alarms(connection)
        if alarm.source == name and alarm.kind == AlarmKind.suite_failed and alarm.key
    ]
    past = _json(objects, f"{FOLDER}/{name}/{PAST}")
    if past and past.get("runs"):
        keys.append((name, str(past["runs"][-1]["claim_id"])))
    results = (_json(objects, f"{folder(*key)}/{RESULT}") for key in keys)
    return tuple(_suite(result) for result in results if result)


def _suite(result: Mapping[str, Any]) -> Suite:
    outcomes = result["outcomes"]
    return Suite(
        str(result["suite"]),
        # A person may have accepted a failed rule: then the suite counts as passed.
        not result["stopped"],
        datetime.fromisoformat(result["checked_at"]),
        len(outcomes),
        tuple(str(outcome["rule"]) for outcome in outcomes if outcome["state"] == "failed"),
    )


def read_model(objects: Bucket) -> Model | None:
    """The champion and its card; None while the fixed threshold decides."""
    from include.streams.models.store import ModelStore

    store = ModelStore(NAME, objects)
    history = store.history()
    return None if history.version is None else model_of(history, store.card(history.version))


def model_of(history: ModelHistory, card: Card) -> Model:
    period = history.current
    facts = [("In use since", f"{period.since} ({period.by})")] if period else []
    for name, value in card.metrics.items():
        if isinstance(value, (int, float)):
            facts.append((f"{name.replace('_', ' ').capitalize()}, on nights it had not seen", f"{value:.4g}"))
    reasons = [str(reason) for reason in card.verdict.get("reasons", ())]
    facts += [("Why it is in use", "; ".join(reasons))] if reasons else []
    held_out = card.data.get("held_out")
    facts += [("Judged on", str(held_out))] if held_out else []
    return Model(card.version, datetime.fromisoformat(card.created_at), tuple(facts))


def _json(objects: Bucket, path: str) -> Any:
    import json

    found = objects.read(path)
    return json.loads(found[0]) if found else None
