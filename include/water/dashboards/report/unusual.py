"""Unusual hours for the report: read from the lake, and turned into the cells of a table."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from include.water import clock
from include.water.dashboards.report.data import ReportData
from include.water.dashboards.report.flows import SHOWN_DAYS
from include.water.dashboards.report.numbers import counted_in_words, number, short_moment
from include.water.flows.tables import DISTRICT_HOURS
from include.water.leaks.unusual import HIGH, LOW, QUIET, WINDOW_DAYS, Episode, unusual_flow
from include.water.local_days import midnight

# Only the newest are shown, as for leaks.
MAX_EPISODES = 12


def read_unusual(now: datetime, zone: ZoneInfo) -> tuple[Episode, ...] | None:
    """The episodes of the last SHOWN_DAYS up to the clock's horizon; None while too little is known to judge.

    Args:
        now: The time of the report.
        zone: The utility's time zone.
    """
    from pyiceberg.exceptions import NoSuchTableError

    from include.streams.lake.catalog import load_catalog
    from include.streams.lake.engine import connect, scan

    first = now.astimezone(zone).date() - timedelta(days=SHOWN_DAYS)
    since = midnight(first - timedelta(days=WINDOW_DAYS), zone).isoformat()
    try:
        table = load_catalog().load_table(DISTRICT_HOURS)
    except NoSuchTableError:
        return None
    with connect() as connection:
        columns = ("district_id", "hour", HIGH, LOW)
        span = f"hour >= '{since}' and hour < '{clock.horizon(now).isoformat()}'"
        hours = scan(connection, table, row_filter=span, columns=columns).df()
    episodes = unusual_flow(hours)
    return None if episodes is None else tuple(one for one in episodes if one.end > midnight(first, zone))


def unusual(data: ReportData) -> list[dict[str, str]]:
    """A row for each episode, the newest first."""
    newest = sorted(data.unusual or (), key=lambda episode: (episode.end, episode.start), reverse=True)[:MAX_EPISODES]
    names = {district.district_id: district.name for district in data.districts}
    return [_row(episode, names.get(episode.district_id, episode.district_id), data) for episode in newest]


def _row(episode: Episode, district: str, data: ReportData) -> dict[str, str]:
    goes_on = data.data_up_to is not None and data.data_up_to - episode.end <= QUIET
    start, end = (short_moment(moment, data.timezone) for moment in (episode.start, episode.end))
    day, _, time = end.rpartition(" ")
    end = time if start.startswith(day) else end
    return {
        "district": district,
        "what": "High loss" if episode.high else "Low inflow",
        "kind": "bad" if goes_on else "over",
        "when": f"since {start}" if goes_on else f"{start} to {end}",
        "hours": number(episode.hours),
        "litres": number(episode.litres),
        "usual": number(episode.usual_litres),
    }


def unusual_summary(data: ReportData) -> str:
    if data.unusual is None:
        return "Too few hours are known yet to say what is usual."
    if not data.unusual:
        return "No hour of the last four weeks was far from usual."
    high = sum(episode.high for episode in data.unusual)
    rest = f" The {MAX_EPISODES} newest are shown." if len(data.unusual) > MAX_EPISODES else ""
    return (
        f"{counted_in_words(len(data.unusual), 'time')} in the last four weeks, the flow of a district was far from "
        f"usual: {number(high)} with far more lost, {number(len(data.unusual) - high)} with far less fed in.{rest}"
    )
