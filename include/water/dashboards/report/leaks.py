"""The leaks of the report: one line per leak, with its nights, its alert and its work orders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from include.water.dashboards.report.data import Leak
from include.water.dashboards.report.flows import SHOWN_DAYS, Flows
from include.water.flows.definition import TIME_ZONE
from include.water.local_days import midnight
from include.water.sites import DISTRICTS
from include.water.topics import Action, AlertKind

if TYPE_CHECKING:
    from sqlalchemy import Connection

# Work orders for which somebody is sent out; all others answer a customer.
FIELD_WORK = (Action.schedule_inspection, Action.dispatch_crew, Action.close_valve)


@dataclass(frozen=True)
class LeakNight:
    """One night's leak of one district."""

    leak_key: str
    district_id: str
    night: date
    litres_per_hour: float
    confidence: float | None
    # The key of the night under which the leak was reported.
    reported_as: str


@dataclass(frozen=True)
class Alert:
    severity: str
    rank: int
    raised_at: datetime


def read_leaks(connection: Connection, flows: Flows, now: datetime) -> tuple[Leak, ...] | None:
    """The leaks of the last SHOWN_DAYS.

    Args:
        connection: A connection to the operational database.
        flows: The flows of the report, with the judged nights.
        now: The time of the report.

    Returns:
        The leaks; None while there is no night to judge.
    """
    from sqlalchemy import func, select

    from include.water.tables import alerts, leaks, work_orders

    judged = dict(flows.judged)
    if not judged:
        return None
    first = now.astimezone(TIME_ZONE).date() - timedelta(days=SHOWN_DAYS)
    columns = [leaks.c[name] for name in LeakNight.__dataclass_fields__]
    nights = [LeakNight(*row) for row in connection.execute(select(*columns).where(leaks.c.night >= first))]
    raised = {
        row.source_event_id: Alert(row.severity, row.severity_rank, row.raised_at)
        for row in connection.execute(
            select(alerts).where(alerts.c.kind == AlertKind.leak, alerts.c.raised_at >= midnight(first, TIME_ZONE))
        )
    }

    def orders(district_id: str, since: date) -> int:
        return (
            connection.scalar(
                select(func.count()).where(
                    work_orders.c.district_id == district_id,
                    work_orders.c.action.in_(FIELD_WORK),
                    work_orders.c.created_at >= midnight(since, TIME_ZONE),
                )
            )
            or 0
        )

    return tuple(
        leak_of(of_leak, raised, judged, orders(of_leak[0].district_id, of_leak[0].night))
        for of_leak in nights_by_leak(nights)
    )


def nights_by_leak(nights: Iterable[LeakNight]) -> list[list[LeakNight]]:
    """The nights of each leak, oldest first. The detection decides which nights belong to one leak."""
    by_leak: dict[str, list[LeakNight]] = defaultdict(list)
    for night in sorted(nights, key=lambda night: (night.district_id, night.night, night.leak_key)):
        by_leak[night.reported_as].append(night)
    return list(by_leak.values())


def leak_of(
    nights: Sequence[LeakNight], raised: Mapping[str, Alert], judged: Mapping[str, date], work_orders: int
) -> Leak:
    """One line of the report.

    Args:
        nights: The nights of the leak, oldest first.
        raised: {leak key: alert}.
        judged: {district: its last night that could be judged}.
        work_orders: How many work orders the district has had since the leak began.
    """
    last = nights[-1]
    alerts = [raised[night.leak_key] for night in nights if night.leak_key in raised]
    district = DISTRICTS.get(last.district_id)
    return Leak(
        district=district.name if district else last.district_id,
        first_night=nights[0].night,
        last_night=last.night,
        nights=len({night.night for night in nights}),
        # A night can have several rows: their sum.
        litres_per_hour=sum(night.litres_per_hour for night in nights if night.night == last.night),
        confidence=last.confidence,
        active=last.night >= judged.get(last.district_id, last.night),
        severity=max(alerts, key=lambda alert: alert.rank).severity if alerts else None,
        raised_at=min((alert.raised_at for alert in alerts), default=None),
        work_orders=work_orders,
    )
