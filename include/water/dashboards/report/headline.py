"""The report's headline and the sentences below it, computed from the report's figures so that they always match."""

from __future__ import annotations

from include.water.dashboards.report.data import District, Leak, ReportData
from include.water.dashboards.report.numbers import counted, counted_in_words, cubic_metres, day, percent, with_unit

# A smaller change of the share can be explained by meters and timing.
NOTABLE_CHANGE = 0.003


def headline(data: ReportData) -> str:
    balance = data.balance
    if balance is None or data.period is None:
        return "No hourly flows have been computed yet."
    when = _when(data)
    if balance.loss_share is None:
        return f"No water was fed into the network {when}."
    if balance.loss < 0:
        return f"The meters counted {percent(-balance.loss_share)} more water than was fed in {when}: check the inlets."
    text = f"{percent(balance.loss_share)} of the water fed into the network {when} was lost"
    before = data.before.loss_share if data.before else None
    if before is None:
        return f"{text}."
    points = balance.loss_share - before
    if abs(points) < NOTABLE_CHANGE:
        return f"{text}, about as much as {_before(data)}."
    word = "more" if points > 0 else "less"
    return f"{text}, {with_unit(abs(100 * points), 'points', 1)} {word} than {_before(data)}."


def deck(data: ReportData) -> str:
    """The sentences below the headline: where water is lost, and which leaks are known. May be empty."""
    return " ".join(filter(None, (_where(data), _leaks(data.leaks))))


def _when(data: ReportData) -> str:
    assert data.period is not None
    if not data.period_ended:
        return "so far today"
    if data.period_days == 7:
        return f"in the week to {day(data.period[1])}"
    if data.period_days == 1:
        return f"on {day(data.period[1])}"
    return f"in the {data.period_days} days to {day(data.period[1])}"


def _before(data: ReportData) -> str:
    return "the week before" if data.period_days == 7 else f"in the {counted(data.period_days, 'day')} before"


def worst(districts: tuple[District, ...]) -> District | None:
    """The district that loses most; None when no district loses water."""
    losing = [district for district in districts if district.balance and district.balance.loss > 0]
    return max(losing, key=lambda district: district.balance.loss if district.balance else 0.0, default=None)


def _where(data: ReportData) -> str:
    most = worst(data.districts)
    balance = data.balance
    if most is None or most.balance is None or balance is None or balance.loss <= 0:
        return ""
    lost = f"{cubic_metres(most.balance.loss)} a day"
    if sum(1 for district in data.districts if district.balance) == 1:
        return f"{most.name} lost {lost}."
    return f"{most.name} lost the most: {lost}, {percent(most.balance.loss_share)} of what flowed into it."


def _leaks(leaks: tuple[Leak, ...] | None) -> str:
    if leaks is None:
        return ""
    active = [leak for leak in leaks if leak.active]
    if not active:
        return "No leak is known to be running."
    largest = max(active, key=lambda leak: leak.litres_per_hour)
    size = with_unit(largest.litres_per_hour, "litres an hour")
    if len(active) == 1:
        return f"One leak is running, in {largest.district}, at about {size}."
    return f"{counted_in_words(len(active), 'leak')} are running; the largest, in {largest.district}, at about {size}."
