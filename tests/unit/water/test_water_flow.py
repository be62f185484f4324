"""The real series from the package `river`: moved in time, with its anomalies at their positions."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from tests.unit.water.water_flow import ANOMALIES, real_flow

UNTIL = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
HOUR, WEEK = timedelta(hours=1), timedelta(days=7)


def test_the_series_ends_in_the_week_before_and_keeps_its_steps():
    rows = real_flow(UNTIL)
    assert len(rows) == 1268
    assert UNTIL - WEEK - HOUR < rows[-1].hour <= UNTIL - HOUR
    earlier = real_flow(UNTIL - 5 * WEEK)
    assert [(row.hour - 5 * WEEK, row.litres) for row in rows] == [(row.hour, row.litres) for row in earlier]
    assert all(b.hour > a.hour for a, b in pairwise(rows))


def test_only_the_four_anomalies_are_outliers():
    rows = real_flow(UNTIL)
    normal = [row.litres for row in rows if row.anomaly is None]
    assert max(normal) < 1.06 * min(normal) + 0.03 * max(normal)
    runs = [kind for kind, _, _ in ANOMALIES]
    assert runs == ["low", "low", "peak", "low"]
    for kind, first, last in ANOMALIES:
        litres = [row.litres for row in rows[first : last + 1]]
        assert max(litres) < min(normal) if kind == "low" else min(litres) > max(normal)
