"""Numbers and times as text for the report: with units, and with no-break spaces."""

from __future__ import annotations

from datetime import date, datetime
from zoneinfo import ZoneInfo

NONE = "\N{EN DASH}"
_SPACE = "\N{NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"


def number(value: float | None, digits: int = 0) -> str:
    """12345.6 -> "12,346"; None -> a dash."""
    if value is None:
        return NONE
    text = f"{value:,.{digits}f}"
    # A value that is rounded to zero gets no sign.
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", _MINUS)


def with_unit(value: float | None, unit: str, digits: int = 0) -> str:
    return NONE if value is None else f"{number(value, digits)}{_SPACE}{unit}"


def cubic_metres(litres: float | None) -> str:
    """Liters as m³. Small amounts get a decimal: otherwise a small district would show 0."""
    if litres is None:
        return NONE
    value = litres / 1000
    return with_unit(value, "m³", 1 if abs(value) < 100 else 0)


def percent(share: float | None, digits: int = 1) -> str:
    if share is None:
        return NONE
    text = number(100 * share, digits)
    # A small share must not look like none: "<0.1%".
    return f"<{10**-digits:.{digits}f}%" if share > 0 and not text.strip("0.") else f"{text}%"


def change(now: float | None, before: float | None, digits: int = 0) -> str:
    """The difference with its sign: +1,234; a dash when one of the values is unknown."""
    if now is None or before is None:
        return NONE
    text = number(now - before, digits)
    return f"+{text}" if now > before and text.strip("0.,") else text


def day(value: date, *, year: bool = False) -> str:
    """21 November, 21 November 2026."""
    return f"{value.day}{_SPACE}{value:%B}" + (f"{_SPACE}{value.year}" if year else "")


def short_day(value: date) -> str:
    return f"{value.day}{_SPACE}{value:%b}"


def period(first: date, last: date) -> str:
    """1 to 7 November 2026."""
    if first == last:
        return day(last, year=True)
    if (first.year, first.month) == (last.year, last.month):
        return f"{first.day} to {day(last, year=True)}"
    return f"{day(first, year=first.year != last.year)} to {day(last, year=True)}"


def moment(value: datetime, timezone: str) -> str:
    """21 November 2026, 14:05 PST."""
    local = value.astimezone(ZoneInfo(timezone))
    return f"{day(local.date(), year=True)}, {local:%H:%M}{_SPACE}{local:%Z}"


def short_moment(value: datetime, timezone: str) -> str:
    """21 Nov 14:05."""
    local = value.astimezone(ZoneInfo(timezone))
    return f"{short_day(local.date())} {local:%H:%M}"


def counted(count: int, one: str) -> str:
    """1 leak, 2 leaks."""
    return f"{number(count)}{_SPACE}{one if count == 1 else one + 's'}"


_WORDS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


def counted_in_words(count: int, one: str) -> str:
    """For the beginning of a sentence: One leak, Two leaks, 12 leaks."""
    word = _WORDS[count] if count < len(_WORDS) else number(count)
    return f"{word} {one if count == 1 else one + 's'}"
