"""Which hours, days and nights a reading touches; and spans of time as conditions for PyIceberg and DuckDB alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import groupby, pairwise
from typing import TypeVar

from include.water.flows.definition import KNOWN_DAYS, MAX_GAP, TIME_ZONE, night_of

HOUR, DAY, NO_TIME = timedelta(hours=1), timedelta(days=1), timedelta(0)
# How far a reading reaches: the segments on its two sides are at most MAX_GAP long.
REACH_HOURS = -(-MAX_GAP // HOUR)
# A condition of more parts than this takes longer to evaluate than the rows that it saves.
MAX_SPANS = 64

Span = tuple[datetime, datetime]
Moment = TypeVar("Moment", datetime, date)


def reached(hours: Iterable[datetime]) -> list[datetime]:
    """The hours whose flow a reading made in one of `hours` can change, by time."""
    return sorted({hour + n * HOUR for hour in hours for n in range(-REACH_HOURS, REACH_HOURS + 1)})


def counted_days(hours: Iterable[datetime]) -> set[datetime]:
    """The days on which a reading made in one of `hours` makes its meter a known one."""
    return {day + n * DAY for day in {midnight(hour) for hour in hours} for n in range(KNOWN_DAYS + 1)}


def window_of(night: date) -> list[datetime]:
    """The hours of a night's window, in UTC: one fewer or one more where clocks are changed within it."""
    evening = datetime(night.year, night.month, night.day, 12, tzinfo=TIME_ZONE).astimezone(UTC)
    return [hour for n in range(36) if night_of(hour := evening + n * HOUR) == night]


def blocks(hours: Iterable[datetime], days: int) -> Iterator[list[datetime]]:
    """The hours in parts of at most so many days, by time."""
    by_day = [list(group) for _, group in groupby(sorted(hours), midnight)]
    for first in range(0, len(by_day), days):
        yield [hour for day in by_day[first : first + days] for hour in day]


def month_blocks(nights: Iterable[date], months: int) -> Iterator[list[date]]:
    """The nights in parts of at most so many months, by time."""
    by_month = [list(group) for _, group in groupby(sorted(nights), lambda night: (night.year, night.month))]
    for first in range(0, len(by_month), months):
        yield [night for month in by_month[first : first + months] for night in month]


def midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def joined(
    moments: Iterable[Moment], step: timedelta, before: timedelta = NO_TIME, after: timedelta = NO_TIME
) -> list[tuple[Moment, Moment]]:
    """[moment - before, moment + step + after) of each, joined where they meet."""
    found: list[tuple[Moment, Moment]] = []
    for moment in sorted(moments):
        first, end = moment - before, moment + step + after
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((first, end))
    return found


def spans(moments: Iterable[datetime], step: timedelta, before: timedelta, after: timedelta) -> list[Span]:
    """As `joined`, but at most MAX_SPANS: more are joined across the smallest gaps."""
    return fewer(joined(moments, step, before, after))


def fewer(joined: list[Span]) -> list[Span]:
    """At most MAX_SPANS spans that cover these: joined across the smallest gaps."""
    gaps = sorted((right[0] - left[1] for left, right in pairwise(joined)), reverse=True)
    if len(gaps) < MAX_SPANS:
        return joined
    kept = [joined[0]]
    for span in joined[1:]:
        if span[0] - kept[-1][1] >= gaps[MAX_SPANS - 2] and len(kept) < MAX_SPANS:
            kept.append(span)
        else:
            kept[-1] = (kept[-1][0], span[1])
    return kept


def within(column: str, wanted: Sequence[tuple[date, date]]) -> str:
    """That a column's time lies in one of the spans."""
    return " or ".join(
        f"({column} >= '{first.isoformat()}' and {column} < '{end.isoformat()}')" for first, end in wanted
    )
