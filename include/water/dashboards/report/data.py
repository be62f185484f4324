"""The data of the report as plain values: created by `collect`, or by a test, and read by `render`.

None means that a value is unknown or does not exist yet; the report says so. Volumes are in liters, flows are in liters
per day unless the name says otherwise, and days are in the utility's time zone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from include.water.leaks.unusual import Episode


@dataclass(frozen=True)
class Balance:
    """The inflow of a part of the network and its metered consumption, on an average day of a period.

    Only hours in which both are known count. Otherwise water would be metered that never flowed in.
    """

    inlet: float
    metered: float
    known_hours: int
    expected_hours: int
    # Customers' meters. Losses are compared per connection: the share of lost water falls when the use rises.
    connections: int = 0

    @property
    def loss(self) -> float:
        return self.inlet - self.metered

    @property
    def loss_share(self) -> float | None:
        return self.loss / self.inlet if self.inlet > 0 else None

    @property
    def loss_per_connection(self) -> float | None:
        return self.loss / self.connections if self.connections else None

    @property
    def coverage(self) -> float:
        return self.known_hours / self.expected_hours if self.expected_hours else 0.0


@dataclass(frozen=True)
class Day:
    """One day of the whole network: volumes of the known hours."""

    day: date
    inlet: float
    metered: float
    known_hours: int
    expected_hours: int

    @property
    def loss(self) -> float:
        return self.inlet - self.metered

    @property
    def complete(self) -> bool:
        return self.known_hours >= self.expected_hours


@dataclass(frozen=True)
class Night:
    """One night of a district; in liters per hour."""

    night: date
    loss_lph: float | None
    complete: bool


@dataclass(frozen=True)
class District:
    district_id: str
    name: str
    balance: Balance | None
    # The previous period of the same length; None unless enough of its hours are known (MIN_COVERAGE_BEFORE).
    before: Balance | None
    nights: tuple[Night, ...] = ()


@dataclass(frozen=True)
class Leak:
    """Consecutive nights of a district that the detection assigned to one leak."""

    district: str
    first_night: date
    last_night: date
    nights: int
    litres_per_hour: float
    confidence: float | None
    # Whether the leak was seen in the last night that could be judged.
    active: bool
    # The severity of the alert; None when no alert has been raised.
    severity: str | None = None
    raised_at: datetime | None = None
    work_orders: int = 0


@dataclass(frozen=True)
class Suite:
    """The result of a suite of rules for one batch."""

    name: str
    passed: bool
    checked_at: datetime
    rules: int
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quality:
    """Counts of the readings since `since`; the four counts must balance."""

    since: datetime
    landed: int
    clean: int
    dead_lettered: int
    duplicates: int
    reasons: tuple[tuple[str, int], ...] = ()
    missing_readings: int | None = None
    suites: tuple[Suite, ...] = ()

    @property
    def balances(self) -> bool:
        return self.landed == self.clean + self.dead_lettered + self.duplicates


@dataclass(frozen=True)
class Model:
    """The champion: the model that decides what is a leak."""

    version: str
    trained_at: datetime | None = None
    # (what was measured, its value as text), in the order of display.
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ReportData:
    computed_at: datetime
    timezone: str
    # The end of the last hour with a flow; None: nothing has been aggregated.
    data_up_to: datetime | None = None
    # The first and last day of the balances, both included.
    period: tuple[date, date] | None = None
    # Whether every day of the period has ended.
    period_ended: bool = True
    days: tuple[Day, ...] = ()
    districts: tuple[District, ...] = ()
    # None: the detection has not run yet; (): it has found nothing.
    leaks: tuple[Leak, ...] | None = None
    # None: too little is known to say what is usual.
    unusual: tuple[Episode, ...] | None = None
    quality: Quality | None = None
    model: Model | None = None

    @property
    def balance(self) -> Balance | None:
        return _sum([district.balance for district in self.districts])

    @property
    def before(self) -> Balance | None:
        """The balance of the previous period; None unless every district of the period has one.

        Otherwise a missing district would look like a change.
        """
        now = [district for district in self.districts if district.balance]
        return _sum([district.before for district in now]) if all(district.before for district in now) else None

    @property
    def period_days(self) -> int:
        return (self.period[1] - self.period[0] + timedelta(days=1)).days if self.period else 0

    @property
    def night_loss(self) -> float | None:
        """The loss at night of all districts in liters per day; None unless each has a complete night in the period."""
        if not self.period:
            return None
        means = []
        for district in self.districts:
            losses = [
                night.loss_lph
                for night in district.nights
                if night.complete and night.loss_lph is not None and self.period[0] <= night.night <= self.period[1]
            ]
            if district.balance and not losses:
                return None
            means += [sum(losses) / len(losses)] if losses else []
        return 24 * sum(means) if means else None


def _sum(balances: list[Balance | None]) -> Balance | None:
    known = [balance for balance in balances if balance is not None]
    if not known:
        return None
    return Balance(
        sum(balance.inlet for balance in known),
        sum(balance.metered for balance in known),
        sum(balance.known_hours for balance in known),
        sum(balance.expected_hours for balance in known),
        sum(balance.connections for balance in known),
    )
