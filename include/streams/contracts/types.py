"""Types for the fields of a contract, in place of plain `str`, `float` and `datetime`, which have no bounds.

The types must mean the same to every reader of a topic. So patterns use `[0-9]` instead of `\\d`, which matches digits
of other scripts in some engines. And times are checked in code, because JSON Schema's `format` is only a hint.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

_RFC3339 = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})"
_ISO_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_RFC3339_PATTERN = re.compile(_RFC3339)
_ISO_DATE_PATTERN = re.compile(_ISO_DATE)
# The range that every store after Kafka can hold, with a margin for conversions between time zones.
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(2200, 1, 1, tzinfo=UTC)


def _from_rfc3339(value: Any, info: ValidationInfo) -> Any:
    # Needed because pydantic also accepts "1700000000" and "2026-01-01 00:00" as times, even in strict mode.
    if info.mode != "json" or not isinstance(value, str):
        return value
    if not _RFC3339_PATTERN.fullmatch(value):
        raise PydanticCustomError("not_rfc3339", "not an RFC 3339 time with offset")
    try:
        return datetime.fromisoformat(value)
    except ValueError:  # the 30th of February, 25 o'clock
        raise PydanticCustomError("not_rfc3339", "not a time that exists") from None


def _to_utc(value: datetime) -> datetime:
    if not EARLIEST <= value < LATEST:
        raise PydanticCustomError("time_out_of_bounds", "time before 1970 or after 2199")
    return value.astimezone(UTC)


def _from_iso_date(value: Any, info: ValidationInfo) -> Any:
    if info.mode != "json" or not isinstance(value, str):
        return value
    if not _ISO_DATE_PATTERN.fullmatch(value):  # "0" would be 1970-01-01
        raise PydanticCustomError("not_iso_date", "not a date as YYYY-MM-DD")
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise PydanticCustomError("not_iso_date", "not a date that exists") from None


def _date_in_bounds(value: date) -> date:
    if not EARLIEST.date() <= value < LATEST.date():
        raise PydanticCustomError("time_out_of_bounds", "date before 1970 or after 2199")
    return value


UtcTime = Annotated[
    AwareDatetime,
    BeforeValidator(_from_rfc3339),
    AfterValidator(_to_utc),
    Field(json_schema_extra={"pattern": f"^{_RFC3339}$"}),
]
"""A time, 1970 to 2199: RFC 3339 with offset in JSON, timezone-aware and in UTC in Python."""

Day = Annotated[
    date,
    BeforeValidator(_from_iso_date),
    AfterValidator(_date_in_bounds),
    Field(json_schema_extra={"pattern": f"^{_ISO_DATE}$"}),
]
"""A calendar day, 1970 to 2199."""

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$", max_length=100)]
"""A name that a program generates. Where its form is known, add a narrower pattern."""

# Control characters are valid in JSON and UTF-8, but PostgreSQL stores no NUL, and terminals execute escape sequences.
Text = Annotated[str, Field(pattern=r"^[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]*$")]
"""Free text with line breaks; give it a `max_length` (in characters) where it is used."""

Line = Annotated[str, Field(pattern=r"^[^\u0000-\u001f\u007f\u2028\u2029]*$")]
"""Free text on one line; give it a `max_length` (in characters) where it is used."""

Latitude = Annotated[float, Field(ge=-90, le=90, description="degrees north, WGS 84")]
Longitude = Annotated[float, Field(ge=-180, le=180, description="degrees east, WGS 84")]


def utc_text(moment: datetime) -> str:
    """A time as text for event ids: "2026-11-22T15:00:00Z". Equal times have equal texts.

    Args:
        moment: A timezone-aware time. Microseconds are included only if they are not zero.
    """
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
