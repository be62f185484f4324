"""What the Streams page shows from the operational database. Every statement is bounded: it reads an index or little.

Numbers of messages come from `outcome_counts`; only the minutes since the last counted interval are counted in the
inbox itself.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, text

from include.streams.operations import samples
from include.streams.operations.alarm_kinds import runbook_of
from include.streams.operations.alarms import open_alarms

PERIOD = timedelta(days=1)
# The curve: its length, and the time of each of its points.
CURVE, POINT = timedelta(hours=6), timedelta(minutes=15)
# The rate is that of the last minutes.
RATE = timedelta(minutes=5)
MAX_CLAIMS, MAX_RANGES, MAX_GAPS = 50, 200, 100

_CLAIMS = text(
    """
    select consumer, count(*) as number, extract(epoch from now() - min(claimed_at)) as oldest_seconds
    from claims where closed_at is null group by consumer
    """
)
_UNHANDLED = text(
    """
    select consumer, sum(upper(waiting) - lower(waiting)) as messages from (
        select consumer, unnest(claimed.offsets - coalesce(handled.offsets, '{}')) as waiting
        from (
            select consumer, claim_id, topic, partition, range_agg(int8range(readable_from, end_offset)) as offsets
            from claims join claim_ranges on claim_id = id where closed_at is null group by 1, 2, 3, 4
        ) claimed
        left join (
            select claim_id, topic, partition, range_agg(int8range(start_offset, end_offset)) as offsets
            from claims join handled_ranges on claim_id = id where closed_at is null group by 1, 2, 3
        ) handled using (claim_id, topic, partition)
    ) as left_over group by consumer
    """
)
# tries = -1: the range is still tried in its run (`kafka/postponed.py`).
_FAILING = text(
    """
    select consumer, count(*) as ranges, min(due_at) as due_at
    from postponed_ranges join claims on claims.id = claim_id
    where closed_at is null and tries <> -1 group by consumer
    """
)
_POSITIONS = text('select consumer, topic, "partition", topic_id, next_offset from positions')
_COUNTED = text(
    """
    select consumer, topic, outcome, reason, sum(messages) as messages
    from outcome_counts where starts_at >= :since group by 1, 2, 3, 4
    """
)
_NOT_COUNTED = text(
    """
    select consumer, topic, outcome, coalesce(reason, '') as reason, count(*) as messages,
        count(*) filter (where recorded_at >= :recent) as recent
    from inbox where recorded_at >= :since group by 1, 2, 3, 4
    """
)
_LAST_COUNTED = text("select max(starts_at) from outcome_intervals where starts_at >= :since")
_CURVES = text(
    """
    select consumer, topic, floor(extract(epoch from sampled_at - :since) / :seconds)::int as point, max(lag) as lag
    from consumer_samples where sampled_at >= :since group by 1, 2, 3
    """
)
_LAST_SAMPLES = text(
    """
    select distinct on (consumer, topic) consumer, topic, lag, age_seconds, sampled_at
    from consumer_samples where sampled_at >= :since order by consumer, topic, sampled_at desc
    """
)
_LANDED = text(
    """
    select topic, max(sampled_at) as sampled_at,
        (array_agg(connector order by sampled_at desc) filter (where connector is not null))[1] as connector,
        (array_agg(cause order by sampled_at desc) filter (where connector is not null))[1] as cause,
        (array_agg(not_landed order by sampled_at desc) filter (where not_landed is not null))[1] as not_landed,
        (array_agg(table_rows order by sampled_at desc) filter (where topic_id is not null))[1] as table_rows,
        (array_agg(committed_at order by sampled_at desc) filter (where committed_at is not null))[1] as committed_at
    from landing_samples where sampled_at >= :since group by topic
    """
)
_LANDED_CURVES = text(
    """
    select topic, floor(extract(epoch from sampled_at - :since) / :seconds)::int as point, max(not_landed) as lag
    from landing_samples where sampled_at >= :since and not_landed is not null group by 1, 2
    """
)
# A row may hold many ranges.
_GAPS = text(
    """
    select topic, state, sum(coalesce(
        (select sum(upper(part) - lower(part)) from unnest(ranges) as part), end_offset - start_offset)) as offsets
    from landing_gaps where state in ('missing', 'lost') group by topic, state
    """
)


def read_now(connection: Connection) -> dict[str, Any]:
    """Alarms, open claims and positions."""
    claims = {row.consumer: row for row in connection.execute(_CLAIMS)}
    unhandled = {row.consumer: int(row.messages) for row in connection.execute(_UNHANDLED)} if claims else {}
    failing = {row.consumer: row for row in connection.execute(_FAILING)} if claims else {}
    positions: dict[str, dict[tuple[str, int], int]] = defaultdict(dict)
    for consumer, topic, partition, _, offset in connection.execute(_POSITIONS):
        positions[consumer][topic, partition] = offset
    return {
        "claims": {
            name: {
                "open": row.number,
                "oldest_seconds": float(row.oldest_seconds),
                "unhandled": unhandled.get(name, 0),
                "failing": failing[name].ranges if name in failing else 0,
                "retried_at": failing[name].due_at.isoformat() if name in failing else None,
            }
            for name, row in claims.items()
        },
        "positions": dict(positions),
        "alarms": read_alarms(connection),
    }


def read_alarms(connection: Connection) -> list[dict[str, Any]]:
    """The open alarms, oldest first."""
    return [
        {
            "id": alarm.id,
            "source": alarm.source,
            "kind": alarm.kind,
            "key": alarm.key,
            "message": alarm.message,
            "opened_at": alarm.opened_at.isoformat(),
            "runbook": runbook_of(alarm.kind, alarm.message),
        }
        for alarm in open_alarms(connection)
    ]


def read_history(connection: Connection, now: datetime | None = None) -> dict[str, Any]:
    """Outcomes of PERIOD, the curves, the last samples and the gaps of landed topics."""
    now = now or datetime.now(UTC)
    since = now - PERIOD
    # Whole intervals: the oldest one may begin before `since`.
    first = samples.interval_of(since)
    outcomes: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    recent: dict[str, int] = defaultdict(int)
    last_counted = connection.scalar(_LAST_COUNTED, {"since": first})
    if last_counted is not None:
        for row in connection.execute(_COUNTED, {"since": first}):
            _add(outcomes[row.consumer, row.topic], row)
    tail = since if last_counted is None else last_counted + samples.INTERVAL
    for row in connection.execute(_NOT_COUNTED, {"since": tail, "recent": now - RATE}):
        _add(outcomes[row.consumer, row.topic], row)
        recent[row.consumer] += row.recent
    begins = now - CURVE
    curve = {"since": begins, "seconds": POINT.total_seconds()}
    curves: dict[str, list[int | None]] = {}
    for (consumer, point), lag in _sums(connection.execute(_CURVES, curve)).items():
        curves.setdefault(consumer, [None] * (CURVE // POINT))[point] = lag
    landed_curves: dict[str, list[int | None]] = {}
    for topic, point, lag in connection.execute(_LANDED_CURVES, curve):
        landed_curves.setdefault(topic, [None] * (CURVE // POINT))[_point(point)] = lag
    gaps: dict[str, dict[str, int]] = defaultdict(dict)
    for topic, state, offsets in connection.execute(_GAPS):
        gaps[topic][state] = int(offsets)
    return {
        "outcomes": {key: dict(counts) for key, counts in outcomes.items()},
        "recent": dict(recent),
        "curves": curves,
        "samples": {(row.consumer, row.topic): row for row in connection.execute(_LAST_SAMPLES, {"since": begins})},
        "landed": {row.topic: row for row in connection.execute(_LANDED, {"since": begins})},
        "landed_curves": landed_curves,
        "gaps": dict(gaps),
    }


def _add(counts: dict[str, int], row: Any) -> None:
    counts[row.outcome] += int(row.messages)
    if row.reason:
        counts[f"reason:{row.reason}"] += int(row.messages)


def _point(number: int) -> int:
    # A sample of this moment may be a little later than `now`.
    return min(max(number, 0), CURVE // POINT - 1)


def _sums(rows: Any) -> dict[tuple[str, int], int]:
    """{(consumer, point): lag of all topics together}."""
    sums: dict[tuple[str, int], int] = defaultdict(int)
    for consumer, _, point, lag in rows:
        sums[consumer, _point(point)] += lag
    return sums


_CLAIMS_OF = text(
    """
    select id, run_id, claimed_at, closed_at, emissions from claims
    where consumer = :consumer and closed_at is null order by claimed_at limit :limit
    """
)
# The index of (consumer, run_id) has all claims of the consumer, of which there may be many: the id is newest first.
_LAST_CLAIMS_OF = text(
    """
    select id, run_id, claimed_at, closed_at, emissions from claims
    where consumer = :consumer and closed_at >= now() - interval '1 day' order by closed_at desc limit 10
    """
)
_RANGES_OF = text(
    """
    select r.claim_id, r.topic, r."partition", r.start_offset, r.end_offset, r.readable_from,
        coalesce((
            select sum(h.end_offset - h.start_offset) from handled_ranges h
            where h.claim_id = r.claim_id and h.topic = r.topic and h."partition" = r."partition"
        ), 0) as handled,
        (select min(due_at) from postponed_ranges p
            where p.claim_id = r.claim_id and p.topic = r.topic and p."partition" = r."partition" and tries <> -1
        ) as retried_at
    from claim_ranges r where r.claim_id = any(:claim_ids) order by 1, 2, 3 limit :limit
    """
)
_POSITIONS_OF = text(
    'select topic, "partition", topic_id, next_offset from positions where consumer = :consumer order by 1, 2'
)
_CURVES_OF = text(
    """
    select topic, sampled_at, lag, age_seconds from consumer_samples
    where consumer = :consumer and sampled_at >= now() - interval '6 hours' order by sampled_at
    """
)
_DEAD_LETTERS_OF = text(
    """
    select topic, "partition", "offset", reason, detail, run_id, recorded_at from inbox
    where consumer = :consumer and outcome = 'dead_letter' and recorded_at >= now() - interval '1 day'
    order by recorded_at desc limit 20
    """
)
_GAPS_OF = text(
    """
    select "partition", start_offset, end_offset, state, records, found_at,
        coalesce((select sum(upper(part) - lower(part)) from unnest(ranges) as part), end_offset - start_offset)
            as offsets
    from landing_gaps where topic = :topic and state <> 'no_record' order by state = 'missing' desc, found_at desc
    limit :limit
    """
)
_LANDED_CURVE_OF = text(
    """
    select sampled_at, not_landed from landing_samples
    where topic = :topic and not_landed is not null and sampled_at >= now() - interval '6 hours' order by sampled_at
    """
)


def read_consumer(connection: Connection, consumer: str) -> dict[str, Any]:
    """Claims with their ranges, positions and the curve of one consumer."""
    claims = [
        *connection.execute(_CLAIMS_OF, {"consumer": consumer, "limit": MAX_CLAIMS}),
        *connection.execute(_LAST_CLAIMS_OF, {"consumer": consumer}),
    ]
    ranges: dict[int, list[dict[str, Any]]] = defaultdict(list)
    found = connection.execute(_RANGES_OF, {"claim_ids": [claim.id for claim in claims], "limit": MAX_RANGES})
    for row in found:
        ranges[row.claim_id].append(
            {
                "topic": row.topic,
                "partition": row.partition,
                "start": row.start_offset,
                "end": row.end_offset,
                "lost": row.readable_from - row.start_offset,
                "handled": int(row.handled),
                "retried_at": row.retried_at and row.retried_at.isoformat(),
            }
        )
    return {
        "claims": [
            {
                "run_id": claim.run_id,
                "claimed_at": claim.claimed_at.isoformat(),
                "closed_at": claim.closed_at and claim.closed_at.isoformat(),
                "ranges": ranges[claim.id],
            }
            for claim in claims
            # A run without messages claims nothing.
            if ranges[claim.id] or claim.closed_at is None
        ],
        "positions": [dict(row._mapping) for row in connection.execute(_POSITIONS_OF, {"consumer": consumer})],
        "curve": [
            {"at": row.sampled_at.isoformat(), "topic": row.topic, "lag": row.lag, "age_seconds": row.age_seconds}
            for row in connection.execute(_CURVES_OF, {"consumer": consumer})
        ],
        "letters": [
            {**row._mapping, "recorded_at": row.recorded_at.isoformat()}
            for row in connection.execute(_DEAD_LETTERS_OF, {"consumer": consumer})
        ],
    }


def read_topic(connection: Connection, topic: str) -> dict[str, Any]:
    """Gaps and curve of one landed topic, and the positions of its consumers."""
    rows = connection.execute(
        text('select consumer, "partition", next_offset from positions where topic = :topic'), {"topic": topic}
    )
    return {
        "gaps": [
            {
                "partition": row.partition,
                "start": row.start_offset,
                "end": row.end_offset,
                "offsets": int(row.offsets),
                "state": row.state,
                "records": row.records,
                "found_at": row.found_at.isoformat(),
            }
            for row in connection.execute(_GAPS_OF, {"topic": topic, "limit": MAX_GAPS})
        ],
        "curve": [
            {"at": row.sampled_at.isoformat(), "lag": row.not_landed}
            for row in connection.execute(_LANDED_CURVE_OF, {"topic": topic})
        ],
        "positions": [dict(row._mapping) for row in rows],
    }
