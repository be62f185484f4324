"""The rules that say which events are alerts, and how severe: pure functions of the event and the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import asin, cos, hypot, radians, sin, sqrt

from include.streams import Contract
from include.water.alerts.thresholds import LEAK_RULES, MIN_LEAK_CONFIDENCE, QUAKE_RULES
from include.water.sites import DISTRICTS, SITES, Site
from include.water.topics import AlertKind, LeakDetected, ReviewStatus, SeismicEvent, Severity

EARTH_RADIUS_KM = 6371.0088  # mean radius, IUGG


@dataclass(frozen=True)
class Alert:
    """The result of the rules for one event.

    `alert_id` identifies the subject of the alert, not the message: all revisions of one earthquake share it.
    """

    alert_id: str
    kind: AlertKind
    severity: Severity
    district_id: str
    site_id: str | None
    title: str


def assess(event: Contract) -> Alert | None:
    """Apply the rules to an event.

    Args:
        event: A SeismicEvent or a LeakDetected.

    Returns:
        The alert, or None.

    Raises:
        TypeError: There are no rules for this kind of event.
    """
    if isinstance(event, SeismicEvent):
        return assess_quake(event)
    if isinstance(event, LeakDetected):
        return assess_leak(event)
    raise TypeError(f"no alert rules for {type(event).__name__}")


def assess_quake(event: SeismicEvent, sites: Iterable[Site] = tuple(SITES.values())) -> Alert | None:
    """An alert if the earthquake is strong enough, near enough to a site, and not withdrawn.

    The alert names the site with the highest severity; among equals, the nearest site.

    Args:
        event: The earthquake; its depth is in kilometers.
        sites: The sites to check.

    Returns:
        The alert, or None.
    """
    if event.magnitude is None or event.status is ReviewStatus.deleted:
        return None
    # An unknown depth counts as 0 km: one alert too many is better than a missed alert.
    depth_km = max(event.depth_km or 0.0, 0.0)
    hits = []
    for site in sites:
        at_surface_km = distance_km(event.latitude, event.longitude, site.latitude, site.longitude)
        severity = _quake_severity(event.magnitude, hypot(at_surface_km, depth_km))
        if severity is not None:
            hits.append((-severity.rank, at_surface_km, site.site_id, severity, site))
    if not hits:
        return None
    _, at_surface_km, _, severity, site = min(hits)
    return Alert(
        alert_id=f"seismic:{event.seismic_id}",
        kind=AlertKind.seismic,
        severity=severity,
        district_id=site.district_id,
        site_id=site.site_id,
        title=f"M {event.magnitude:.1f} {event.kind}, {at_surface_km:.0f} km from {site.name}",
    )


def assess_leak(event: LeakDetected) -> Alert | None:
    """An alert if the leak is large enough and likely enough, else None."""
    if event.confidence < MIN_LEAK_CONFIDENCE:
        return None
    severities = [rule.severity for rule in LEAK_RULES if event.litres_per_hour >= rule.min_litres_per_hour]
    if not severities:
        return None
    district = DISTRICTS.get(event.district_id)
    where = district.name if district else event.district_id
    return Alert(
        alert_id=f"leak:{event.leak_key}",
        kind=AlertKind.leak,
        severity=max(severities, key=lambda severity: severity.rank),
        district_id=event.district_id,
        site_id=None,
        title=f"Leak of about {event.litres_per_hour:,.0f} litres an hour in {where}, night of {event.night}",
    )


def distance_km(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """The great-circle distance of two points in kilometers, by the haversine formula, which is exact for close points.

    Args:
        latitude: Of the first point, in degrees.
        longitude: Of the first point, in degrees.
        other_latitude: Of the second point, in degrees.
        other_longitude: Of the second point, in degrees.
    """
    half_north = radians(other_latitude - latitude) / 2
    half_east = radians(other_longitude - longitude) / 2
    shrink = cos(radians(latitude)) * cos(radians(other_latitude))
    chord = sin(half_north) ** 2 + shrink * sin(half_east) ** 2
    return 2 * EARTH_RADIUS_KM * asin(sqrt(min(1.0, chord)))  # rounding can exceed 1 for antipodes


def _quake_severity(magnitude: float, from_hypocentre_km: float) -> Severity | None:
    severities = [
        rule.severity
        for rule in QUAKE_RULES
        if magnitude >= rule.min_magnitude and from_hypocentre_km <= rule.within_km
    ]
    return max(severities, key=lambda severity: severity.rank, default=None)
