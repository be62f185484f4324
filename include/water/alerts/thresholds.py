"""When an event becomes an alert: all thresholds in one place."""

from __future__ import annotations

from dataclasses import dataclass

from include.water.topics import Severity


@dataclass(frozen=True)
class QuakeRule:
    """An earthquake of at least this magnitude, at most this far (km) from a site, is an alert of this severity."""

    severity: Severity
    min_magnitude: float
    within_km: float


@dataclass(frozen=True)
class LeakRule:
    """A leak of at least this size is an alert of this severity."""

    severity: Severity
    min_litres_per_hour: float


# Shaking halves over a few tens of kilometers and doubles with a few tenths of a magnitude, so the severities have
# rules for near and for far earthquakes. The distance is to the hypocenter: a deep earthquake shakes less.
QUAKE_RULES = (
    QuakeRule(Severity.critical, min_magnitude=6.5, within_km=150),
    QuakeRule(Severity.critical, min_magnitude=5.5, within_km=40),
    QuakeRule(Severity.major, min_magnitude=5.5, within_km=120),
    QuakeRule(Severity.major, min_magnitude=4.5, within_km=40),
    QuakeRule(Severity.minor, min_magnitude=4.5, within_km=100),
    QuakeRule(Severity.minor, min_magnitude=3.5, within_km=40),
)

# Critical: a burst pipe. Major: a leaking joint, for which a crew goes out tomorrow. Minor: to be checked this week.
LEAK_RULES = (
    LeakRule(Severity.critical, min_litres_per_hour=10_000),
    LeakRule(Severity.major, min_litres_per_hour=2_000),
    LeakRule(Severity.minor, min_litres_per_hour=400),
)
# Below this confidence, most crews would dig and find nothing.
MIN_LEAK_CONFIDENCE = 0.5
