"""The texts in the cells of the report's tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from include.water.dashboards.report.data import Balance, District, Leak, ReportData, Suite
from include.water.dashboards.report.numbers import (
    NONE,
    change,
    counted,
    cubic_metres,
    day,
    moment,
    number,
    percent,
    short_day,
    with_unit,
)

# The newest and largest; the database has all of them.
MAX_LEAKS = 12
MAX_REASONS = 8


def by_loss(districts: Sequence[District]) -> list[District]:
    """The districts that have a balance, the largest loss first."""
    known = [district for district in districts if district.balance]
    return sorted(known, key=lambda district: (-district.balance.loss if district.balance else 0.0, district.name))


def warnings(data: ReportData) -> list[str]:
    texts = []
    balance = data.balance
    if data.period and not data.period_ended:
        texts.append("The day is not over, and no earlier day has flows: the figures will change.")
    if balance and balance.coverage < 0.95:
        texts.append(
            f"Only {percent(balance.coverage)} of the hours of this period are known in full; "
            "averages are of the known hours."
        )
    if data.quality and not data.quality.balances:
        texts.append("The counts of readings do not balance: some are unaccounted for.")
    failed = [suite.name for suite in data.quality.suites if not suite.passed] if data.quality else []
    if failed:
        texts.append(
            f"A check of the data failed ({', '.join(failed)}): newer readings wait until a person has looked."
        )
    return texts


def figures(data: ReportData) -> list[dict[str, Any]]:
    """The four numbers below the headline."""
    balance = data.balance
    if balance is None:
        return []
    active = None if data.leaks is None else [leak for leak in data.leaks if leak.active]
    running = sum(leak.litres_per_hour for leak in active or ())
    return [
        {"name": "Fed in a day", "value": cubic_metres(balance.inlet), "below": _relative(data, "inlet")},
        {"name": "Metered a day", "value": cubic_metres(balance.metered), "below": _relative(data, "metered")},
        {
            "name": "Lost a day",
            "value": cubic_metres(balance.loss),
            "below": f"{percent(balance.loss_share)} of what was fed in",
            "lost": balance.loss > 0,
        },
        {
            "name": "Leaks running",
            "value": NONE if active is None else number(len(active)),
            "below": "not judged yet"
            if active is None
            else (f"about {with_unit(running, 'litres an hour')}" if active else "none known"),
        },
    ]


def _relative(data: ReportData, name: str) -> str:
    """How much more or less than in the previous period."""
    then = getattr(data.before, name) if data.before else None
    if not then:
        return "on average"
    more = getattr(data.balance, name) / then - 1
    before = "the week before" if data.period_days == 7 else "before"
    if abs(more) < 0.0005:
        return f"as {before}"
    return f"{percent(abs(more))} {'up' if more > 0 else 'down'} on {before}"


def balance(data: ReportData) -> list[dict[str, str]]:
    """The rows of the water balance as defined by the International Water Association: input, consumption, losses."""
    total = data.balance
    if total is None:
        return []

    def row(kind: str, name: str, litres: float) -> dict[str, str]:
        share = percent(litres / total.inlet) if total.inlet > 0 else NONE
        return {"kind": kind, "name": name, "volume": cubic_metres(litres), "share": share}

    table = [row("", "System input", total.inlet), row("", "Metered consumption", total.metered)]
    table.append(row("loss", "Water losses", total.loss))
    if data.night_loss is not None and total.loss > 0:
        # At most the total loss: at night the pressure, and so the leakage, is higher than on average.
        leakage = min(max(data.night_loss, 0.0), total.loss)
        table.append(row("sub", "Leakage, estimated from the nights", leakage))
        table.append(row("sub", "Other: inaccurate meters, use without a meter", total.loss - leakage))
    return table


def balance_note(data: ReportData) -> str:
    if data.balance is None or data.balance.loss <= 0:
        return ""
    if data.night_loss is None:
        return "How much of the losses is leakage is not estimated: a district has no complete night in this period."
    return (
        "Leakage is estimated as the average loss between 01:00 and 05:00, when hardly anybody uses water, multiplied "
        "to 24 hours. This is an upper estimate, because the pressure is higher at night."
    )


def days(data: ReportData) -> list[list[str]]:
    """A row for each day, the newest first."""
    return [
        [
            day(row.day, year=True),
            cubic_metres(row.inlet),
            cubic_metres(row.metered),
            cubic_metres(row.loss),
            percent(row.loss / row.inlet) if row.inlet > 0 else NONE,
            percent(row.known_hours / row.expected_hours if row.expected_hours else None, 0),
        ]
        for row in reversed(data.days)
    ]


def districts(data: ReportData) -> list[dict[str, Any]]:
    """A row for each district, the largest loss first, and a row for the network."""
    table = [_district(row.name, row.balance, row.before) for row in by_loss(data.districts) if row.balance]
    if data.balance and len(table) > 1:
        table.append({**_district("Network", data.balance, data.before), "total": True})
    return table


def _district(name: str, now: Balance, before: Balance | None) -> dict[str, Any]:
    points = [
        100 * balance.loss_share if balance and balance.loss_share is not None else None for balance in (now, before)
    ]
    # The units are in the table's header.
    return {
        "name": name,
        "inlet": number(now.inlet / 1000, 1),
        "loss": number(now.loss / 1000, 1),
        "share": percent(now.loss_share),
        "change": change(points[0], points[1], 1),
        "per_connection": number(now.loss_per_connection),
        "coverage": percent(now.coverage, 0),
        "total": False,
    }


def nights(data: ReportData) -> list[list[str]]:
    """A row for each night, the newest first; a column for each district."""
    shown = [district for district in data.districts if district.nights]
    by_night = [{night.night: night for night in district.nights} for district in shown]
    table = []
    for date in sorted({date for of_district in by_night for date in of_district}, reverse=True):
        cells = [of_district.get(date) for of_district in by_night]
        texts = [number(cell.loss_lph) + ("" if cell.complete else " *") if cell else NONE for cell in cells]
        table.append([day(date), *texts])
    return table


def leaks(data: ReportData) -> list[dict[str, str]]:
    """Running leaks first, then the newest."""
    newest = sorted(
        data.leaks or (), key=lambda leak: (not leak.active, -leak.last_night.toordinal(), -leak.litres_per_hour)
    )
    return [_leak(leak) for leak in newest[:MAX_LEAKS]]


def _leak(leak: Leak) -> dict[str, str]:
    alert = "not raised yet"
    if leak.severity:
        alert = leak.severity.capitalize() + (f", {short_day(leak.raised_at.date())}" if leak.raised_at else "")
    first, last = short_day(leak.first_night), short_day(leak.last_night)
    span = f"since {first}" if leak.active else (first if first == last else f"{first} to {last}")
    return {
        "district": leak.district,
        "state": "Running" if leak.active else "No longer seen",
        "kind": "bad" if leak.active else "over",
        "nights": f"{span}, {counted(leak.nights, 'night')}",
        "size": number(leak.litres_per_hour),
        "confidence": percent(leak.confidence, 0),
        "alert": alert,
        "work_orders": number(leak.work_orders),
    }


def leaks_summary(data: ReportData) -> str:
    if data.leaks is None:
        return "The detection has not judged a night yet."
    if not data.leaks:
        return "No leak has been found."
    active = sum(leak.active for leak in data.leaks)
    hidden = len(data.leaks) - MAX_LEAKS
    rest = f" The {MAX_LEAKS} most important are shown." if hidden > 0 else ""
    running = "is running" if active == 1 else "are running"
    return f"{counted(len(data.leaks), 'leak')} found in the last weeks; {number(active)} {running}.{rest}"


def quality(data: ReportData) -> dict[str, Any] | None:
    counts = data.quality
    if counts is None:
        return None

    def row(name: str, count: int, total: bool = False) -> dict[str, Any]:
        return {
            "name": name,
            "count": number(count),
            "share": percent(count / counts.landed if counts.landed else None),
            "total": total,
        }

    accepted = percent(counts.clean / counts.landed if counts.landed else None)
    missing = None
    if counts.missing_readings is not None:
        missing = f"{counted(counts.missing_readings, 'reading')} of this period are missing."
    reasons = [(name.replace("_", " "), number(count)) for name, count in counts.reasons[:MAX_REASONS]]
    if rest := sum(count for _, count in counts.reasons[MAX_REASONS:]):
        reasons.append(("other", number(rest)))
    return {
        "summary": f"{accepted} of the {counted(counts.landed, 'reading')} that arrived since "
        f"{moment(counts.since, data.timezone)} were accepted.",
        "rows": [
            row("Accepted", counts.clean),
            row("Sent twice", counts.duplicates),
            row("Rejected (dead letters)", counts.dead_lettered),
            row("Arrived", counts.landed, total=True),
        ],
        "missing": missing,
        "reasons": reasons,
        "suites": [_suite(suite, data.timezone) for suite in counts.suites],
    }


def _suite(suite: Suite, timezone: str) -> dict[str, str]:
    return {
        "name": suite.name,
        "state": "Passed" if suite.passed else "Failed",
        "kind": "good" if suite.passed else "bad",
        "rules": number(suite.rules),
        "failed": ", ".join(suite.failed) or NONE,
        "checked": moment(suite.checked_at, timezone),
    }


def model(data: ReportData) -> list[tuple[str, str]]:
    if data.model is None:
        return []
    trained = data.model.trained_at
    facts = [("Version", data.model.version), ("Trained", moment(trained, data.timezone) if trained else NONE)]
    return facts + list(data.model.facts)
