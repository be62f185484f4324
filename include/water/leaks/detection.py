"""Judge nights and report each leak once.

The process can be killed at any step. Judgements and leaks are written in one transaction. Leaks that are not yet
produced are read from the table, so the run after a killed run produces them. A leak is recorded as produced only after
Kafka has acknowledged it. If the process is killed in between, an event is in Kafka twice with the same event id;
consumers act on it once.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from include.water import clock
from include.water.leaks.frames import DataFrame
from include.water.leaks.model import NAME, Detector, champion
from include.water.leaks.scoring import QUIET_NIGHTS
from include.water.topics import LEAKS_DETECTED, LeakDetected

if TYPE_CHECKING:
    from sqlalchemy import Connection

log = logging.getLogger(__name__)

# Older nights are not judged: nobody should be sent out for a leak of last season.
RECENT_NIGHTS = 30
# A leak that has grown by this factor, and by this much, is reported again, as a new leak: when it was first reported,
# it may have been too small for an alert.
GROWN_BY, GROWN_BY_LPH = 2.0, 400.0
# The key of PostgreSQL's advisory lock; an arbitrary number.
JUDGING_LOCK = 7_401_513


@dataclass(frozen=True)
class Night:
    """The judgement of one night; `score` as in `Judgement`, `confidence` from 0 to 1."""

    district_id: str
    night: date
    fingerprint: str
    score: float
    alarm: bool
    confidence: float
    litres_per_hour: float


def detect(now: datetime | None = None) -> list[str]:
    """Judge the recent nights that are new, or whose data or model have changed.

    Args:
        now: The clock that decides which nights are recent; nights ahead of it are left out.

    Returns:
        The keys of all leaks that are still to be produced.
    """
    from include.streams import begin
    from include.streams.lake.buckets import bucket
    from include.streams.models.store import ModelStore
    from include.water.leaks.features import features
    from include.water.leaks.nights import read_nights

    known = read_nights(now)
    rows = known.rows
    if not rows.empty:
        detector = champion(ModelStore(NAME, bucket()))
        if detector.model is None:
            log.warning("no champion: nights are judged by the baseline, a fixed threshold on the minimum night flow")
        nights = judge(detector, rows.join(features(rows)), clock.today(now))
        with begin() as connection:
            counts = record(connection, detector.version, nights)
        log.info("judged by %s: %s", detector.version, {**counts, "ahead": known.ahead})
    with begin() as connection:
        return unproduced(connection)


def judge(detector: Detector, rows: DataFrame, today: date) -> list[Night]:
    """Judge the nights of the last RECENT_NIGHTS days for which enough is known.

    Args:
        detector: The champion or the baseline.
        rows: All known nights, with their features joined.
        today: The local day of the clock.

    Returns:
        The judged nights, sorted by district and night.
    """
    import pandas as pd

    judgement = detector.judge(rows)
    recent = rows["night"] > pd.Timestamp(today) - pd.Timedelta(days=RECENT_NIGHTS)
    chosen = rows[recent & judgement.score.notna()].sort_values(["district_id", "night"])
    return [
        Night(
            district_id=str(row["district_id"]),
            night=row["night"].date(),
            fingerprint=_fingerprint(row),
            score=float(judgement.score[index]),
            alarm=bool(judgement.alarm[index]),
            confidence=round(float(judgement.confidence[index]), 3),
            litres_per_hour=round(float(judgement.litres_per_hour[index]), 1),
        )
        for index, row in chosen.iterrows()
    ]


def record(connection: Connection, version: str, nights: Sequence[Night]) -> dict[str, int]:
    """Record what is new, in the caller's transaction: judgements, and the leaks of nights with an alarm.

    A night that was judged on the same data by the same model is skipped. A leak that a later judgement does not
    confirm stays: only a person withdraws a reported leak.

    Args:
        connection: A transaction on the operational database.
        version: The version of the model that judged.
        nights: The judged nights.

    Returns:
        {"judged": new judgements, "alarms": those with an alarm, "new_leaks": leaks to be reported}.
    """
    from sqlalchemy import func, select
    from sqlalchemy.dialects.postgresql import insert

    from include.water.tables import judged_nights, leaks

    # Without the lock, two concurrent runs would each find no leak and report it twice, from two of its nights.
    connection.execute(select(func.pg_advisory_xact_lock(JUDGING_LOCK)))
    table = judged_nights.c
    known = {
        (row.district_id, row.night): (row.fingerprint, row.model_version)
        for row in connection.execute(
            select(table.district_id, table.night, table.fingerprint, table.model_version).where(
                table.night >= min((night.night for night in nights), default=date.max)
            )
        )
    }
    new = [n for n in nights if known.get((n.district_id, n.night)) != (n.fingerprint, version)]
    reported = 0
    for night in sorted(new, key=lambda night: (night.district_id, night.night)):
        statement = insert(judged_nights).values(
            district_id=night.district_id,
            night=night.night,
            fingerprint=night.fingerprint,
            model_version=version,
            score=night.score,
            alarm=night.alarm,
        )
        changed = {name: statement.excluded[name] for name in ("fingerprint", "model_version", "score", "alarm")}
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["district_id", "night"], set_={**changed, "judged_at": func.now()}
            )
        )
        if night.alarm:
            reported += _record_leak(connection, version, night, leaks)
    return {"judged": len(new), "alarms": sum(night.alarm for night in new), "new_leaks": reported}


def _record_leak(connection: Connection, version: str, night: Night, leaks: Any) -> bool:
    """Record the night of a leak; returns whether it is to be reported as a new leak."""
    from sqlalchemy import func, select, update
    from sqlalchemy.dialects.postgresql import insert

    key = LeakDetected.key_for(night.district_id, night.night)
    gap = timedelta(days=QUIET_NIGHTS + 1)
    adjacent = connection.execute(
        select(leaks)
        .where(leaks.c.district_id == night.district_id)
        .where(leaks.c.night.between(night.night - gap, night.night + gap))
        .order_by(func.abs(leaks.c.night - night.night), leaks.c.night)
    ).all()
    if any(row.leak_key == key for row in adjacent):
        # The night was judged again. If it has been reported, its figures stay as they were reported.
        connection.execute(
            update(leaks)
            .where(leaks.c.leak_key == key, leaks.c.reported_as != key)
            .values(litres_per_hour=night.litres_per_hour, confidence=night.confidence, model_version=version)
        )
        own = next(row for row in adjacent if row.leak_key == key)
        if own.reported_as == key or not _has_grown(connection, night, own.reported_as, leaks):
            return False
        connection.execute(update(leaks).where(leaks.c.leak_key == key).values(reported_as=key))
        return True
    reported_as = adjacent[0].reported_as if adjacent else None
    is_new = reported_as is None or _has_grown(connection, night, reported_as, leaks)
    connection.execute(
        insert(leaks).values(
            leak_key=key,
            district_id=night.district_id,
            night=night.night,
            litres_per_hour=night.litres_per_hour,
            confidence=night.confidence,
            model_version=version,
            reported_as=key if is_new else reported_as,
        )
    )
    return is_new


def _has_grown(connection: Connection, night: Night, reported_as: str, leaks: Any) -> bool:
    """Whether this night is after the reported night and loses much more."""
    from sqlalchemy import select

    reported = connection.execute(select(leaks).where(leaks.c.leak_key == reported_as)).one()
    before = reported.litres_per_hour
    return night.night > reported.night and night.litres_per_hour >= max(GROWN_BY * before, before + GROWN_BY_LPH)


def unproduced(connection: Connection) -> list[str]:
    """The keys of leaks that are not yet in Kafka, oldest first."""
    from sqlalchemy import select

    from include.water.tables import leaks

    query = select(leaks.c.leak_key).where(leaks.c.reported_as == leaks.c.leak_key, leaks.c.produced_at.is_(None))
    return list(connection.scalars(query.order_by(leaks.c.night, leaks.c.leak_key)))


def messages(keys: Sequence[str]) -> Iterator[tuple[bytes, bytes]]:
    """The (key, value) pairs of these leaks for `ProduceToTopicOperator`: the same bytes at every call."""
    from sqlalchemy import select

    from include.streams import begin
    from include.water.tables import leaks

    with begin() as connection:
        rows = connection.execute(select(leaks).where(leaks.c.leak_key.in_(keys)).order_by(leaks.c.leak_key)).all()
    for row in rows:
        event = LeakDetected(
            version=1,
            leak_key=row.leak_key,
            district_id=row.district_id,
            night=row.night,
            litres_per_hour=row.litres_per_hour,
            confidence=row.confidence,
            model_version=row.model_version,
            detected_at=row.detected_at.astimezone(UTC),
        )
        yield LEAKS_DETECTED.serialize(event)


def record_produced(keys: Sequence[str]) -> None:
    """Record that these leaks are in Kafka; call it after the broker has acknowledged them."""
    from sqlalchemy import update

    from include.streams import begin
    from include.water.tables import leaks

    with begin() as connection:
        connection.execute(
            update(leaks)
            .where(leaks.c.leak_key.in_(keys), leaks.c.produced_at.is_(None))
            .values(produced_at=datetime.now(UTC))
        )


def _fingerprint(row: Any) -> str:
    """A hash of all values of the night that the model and the baseline use."""
    from include.water.leaks.features import FEATURES

    values = [f"{row[name]:.6g}" for name in (*FEATURES, "min_night_flow_lph", "night_loss_lph")]
    return hashlib.sha256(" ".join(values).encode()).hexdigest()[:16]
