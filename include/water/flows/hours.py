"""Which hours, days and nights a reading affects; and time spans as conditions for PyIceberg and DuckDB."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import groupby, pairwise
from typing import Any, TypeVar

from include.water.flows.definition import KNOWN_DAYS, MAX_GAP, TIME_ZONE, night_of

HOUR, DAY, NO_TIME = timedelta(hours=1), timedelta(days=1), timedelta(0)
# How far a reading affects flows: the segments on its two sides are at most MAX_GAP long.
REACH_HOURS = -(-MAX_GAP // HOUR)
# A condition with more spans takes more time to evaluate than it saves by reading fewer rows.
MAX_SPANS = 64

Span = tuple[datetime, datetime]
Moment = TypeVar("Moment", datetime, date)


def hours_in_reach(hours: Iterable[datetime]) -> list[datetime]:
    """The hours whose flow a reading in one of `hours` can change, sorted."""
    return sorted({hour + n * HOUR for hour in hours for n in range(-REACH_HOURS, REACH_HOURS + 1)})


def known_meter_days(hours: Iterable[datetime]) -> set[datetime]:
    """The days on which a meter counts as known if it was read in one of `hours`."""
    return {day + n * DAY for day in {midnight(hour) for hour in hours} for n in range(KNOWN_DAYS + 1)}


def window_of(night: date) -> list[datetime]:
    """The hours of a night's window, in UTC: one fewer or one more in a night in which the clocks change."""
    evening = datetime(night.year, night.month, night.day, 12, tzinfo=TIME_ZONE).astimezone(UTC)
    return [hour for n in range(36) if night_of(hour := evening + n * HOUR) == night]


def midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def blocks(moments: Iterable[Moment], size: int, partition: Callable[[Any], Any] = midnight) -> Iterator[list[Moment]]:
    """The moments, sorted, in lists of at most `size` days, or of at most `size` values of `partition`."""
    groups = [list(group) for _, group in groupby(sorted(moments), partition)]
    for first in range(0, len(groups), size):
        yield [moment for group in groups[first : first + size] for moment in group]


def spans_around(
    moments: Iterable[Moment], step: timedelta, before: timedelta = NO_TIME, after: timedelta = NO_TIME
) -> list[tuple[Moment, Moment]]:
    """The spans [moment - before, moment + step + after) of the moments; spans that touch or overlap are merged."""
    spans: list[tuple[Moment, Moment]] = []
    for moment in sorted(moments):
        first, end = moment - before, moment + step + after
        if spans and first <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((first, end))
    return spans


def limit_spans(spans: list[Span]) -> list[Span]:
    """At most MAX_SPANS spans that cover these: the spans with the smallest gaps between them are merged."""
    gaps = sorted((right[0] - left[1] for left, right in pairwise(spans)), reverse=True)
    if len(gaps) < MAX_SPANS:
        return spans
    kept = [spans[0]]
    for span in spans[1:]:
        if span[0] - kept[-1][1] >= gaps[MAX_SPANS - 2] and len(kept) < MAX_SPANS:
            kept.append(span)
        else:
            kept[-1] = (kept[-1][0], span[1])
    return kept


def spans_condition(column: str, spans: Sequence[tuple[date, date]]) -> str:
    """The SQL condition that the column lies in one of the spans."""
    return " or ".join(
        f"({column} >= '{first.isoformat()}' and {column} < '{end.isoformat()}')" for first, end in spans
    )
