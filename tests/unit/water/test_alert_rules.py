"""Which earthquakes and leaks become alerts, and how severe."""

from __future__ import annotations

from math import atan2, cos, dist, pi, radians, sin
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.water.alerts.rules import EARTH_RADIUS_KM, assess, assess_leak, assess_quake, distance_km
from include.water.alerts.thresholds import LEAK_RULES, MIN_LEAK_CONFIDENCE, QUAKE_RULES
from include.water.sites import SITES, Site
from include.water.topics import LeakDetected, ReviewStatus, SeismicEvent, ServiceRequest, Severity
from tests.unit.water.test_topics import example

DAM = SITES["dam-upper"]
latitudes, longitudes = st.floats(-90, 90), st.floats(-180, 180)


def quake(**changes: Any) -> SeismicEvent:
    """An earthquake directly below the dam, with changes."""
    at = {"latitude": DAM.latitude, "longitude": DAM.longitude, "depth_km": 0.0, "magnitude": 4.0}
    return example(SeismicEvent, **{**at, **changes})


def leak(**changes: Any) -> LeakDetected:
    return example(LeakDetected, **{"litres_per_hour": 900.0, "confidence": 0.9, **changes})


def severity(event: Any) -> Severity | None:
    alert = assess(event)
    return alert.severity if alert else None


def north_of_dam(kilometers: float) -> dict[str, float]:
    return {"latitude": DAM.latitude + kilometers / (EARTH_RADIUS_KM * pi / 180), "longitude": DAM.longitude}


@pytest.mark.parametrize(
    ("point", "other", "kilometers"),
    [
        ((0.0, 0.0), (0.0, 0.0), 0.0),
        ((0.0, 0.0), (0.0, 1.0), 111.195),
        ((0.0, 179.5), (0.0, -179.5), 111.195),
        ((90.0, 0.0), (-90.0, 0.0), pi * EARTH_RADIUS_KM),
        ((0.0, 0.0), (0.0, 180.0), pi * EARTH_RADIUS_KM),
    ],
)
def test_the_distance_is_the_great_circle_distance(point, other, kilometers: float):
    assert distance_km(*point, *other) == pytest.approx(kilometers, abs=0.5)


@given(latitudes, longitudes, latitudes, longitudes)
def test_the_distance_agrees_with_the_angle_between_vectors(a: float, b: float, c: float, d: float):
    def vector(latitude: float, longitude: float) -> tuple[float, float, float]:
        north, east = radians(latitude), radians(longitude)
        return cos(north) * cos(east), cos(north) * sin(east), sin(north)

    first, second = vector(a, b), vector(c, d)
    # Half the angle, from the chord and its complement: exact near 0 and near 180 degrees.
    angle = 2 * atan2(dist(first, second), dist(first, [-x for x in second]))
    assert distance_km(a, b, c, d) == pytest.approx(angle * EARTH_RADIUS_KM, abs=0.001)


@given(latitudes, longitudes, latitudes, longitudes)
def test_a_distance_is_the_same_both_ways_and_at_most_half_the_earth(a: float, b: float, c: float, d: float):
    assert distance_km(a, b, c, d) == pytest.approx(distance_km(c, d, a, b), abs=1e-6)
    assert 0 <= distance_km(a, b, c, d) <= pi * EARTH_RADIUS_KM + 1e-6


@pytest.mark.parametrize(
    ("magnitude", "expected"),
    [(3.4, None), (3.5, Severity.minor), (4.5, Severity.major), (5.5, Severity.critical)],
)
def test_the_stronger_a_quake_the_more_severe(magnitude: float, expected: Severity | None):
    assert severity(quake(magnitude=magnitude)) == expected


def test_the_farther_a_quake_the_less_severe():
    by_distance = {km: severity(quake(magnitude=5.5, **north_of_dam(km))) for km in (10, 60, 110, 300)}
    assert by_distance == {10: Severity.critical, 60: Severity.major, 110: Severity.major, 300: None}
    assert severity(quake(magnitude=9.0, latitude=-37.0, longitude=58.0)) is None


def test_a_deep_quake_is_far_away():
    assert severity(quake(magnitude=4.0, depth_km=5.0)) is Severity.minor
    assert severity(quake(magnitude=4.0, depth_km=60.0)) is None


def test_a_quake_without_depth_or_above_sea_level_counts_as_at_0_km():
    assert severity(quake(depth_km=None)) == severity(quake(depth_km=0.0)) == severity(quake(depth_km=-90.0))


def test_a_quake_without_magnitude_or_withdrawn_is_no_alert():
    assert severity(quake(magnitude=None)) is None
    assert severity(quake(magnitude=7.0, status=ReviewStatus.deleted)) is None
    assert severity(quake(magnitude=7.0, status=ReviewStatus.reviewed)) is Severity.critical


def test_the_alert_names_the_nearest_of_the_most_affected_sites():
    alert = assess(quake(magnitude=6.0))
    assert alert
    assert (alert.site_id, alert.district_id) == ("dam-upper", "hillside")
    assert alert.title == "M 6.0 earthquake, 0 km from Upper Reservoir Dam"


def test_all_revisions_of_a_quake_are_about_the_same_alert():
    first, second = assess(quake(magnitude=4.0)), assess(quake(magnitude=6.0, status=ReviewStatus.reviewed))
    assert first
    assert second
    assert first.alert_id == second.alert_id == "seismic:us7000abcd"
    assert first.severity.rank < second.severity.rank


@given(st.floats(-5, 11), st.floats(0, 3), latitudes, longitudes, st.floats(-100, 1000))
def test_a_stronger_quake_at_the_same_place_is_never_less_severe(
    magnitude: float, more: float, latitude: float, longitude: float, depth_km: float
):
    place = {"latitude": latitude, "longitude": longitude, "depth_km": depth_km}
    weaker = severity(quake(magnitude=magnitude, **place))
    stronger = severity(quake(magnitude=min(magnitude + more, 11.0), **place))
    assert (stronger.rank if stronger else -1) >= (weaker.rank if weaker else -1)


def test_two_sites_at_the_same_place_do_not_confuse_the_rules():
    sites = [Site(name, name, "tank", "harbour", DAM.latitude, DAM.longitude) for name in ("b", "a")]
    alert = assess_quake(quake(), sites)
    assert alert
    assert alert.site_id == "a"


@pytest.mark.parametrize(
    ("litres_per_hour", "expected"),
    [
        (399.9, None),
        (400.0, Severity.minor),
        (2_000.0, Severity.major),
        (9_999.0, Severity.major),
        (10_000.0, Severity.critical),
    ],
)
def test_the_larger_a_leak_the_more_severe(litres_per_hour: float, expected: Severity | None):
    assert severity(leak(litres_per_hour=litres_per_hour)) == expected


def test_an_unlikely_leak_is_no_alert_however_large():
    assert severity(leak(litres_per_hour=50_000.0, confidence=MIN_LEAK_CONFIDENCE)) is Severity.critical
    assert severity(leak(litres_per_hour=50_000.0, confidence=MIN_LEAK_CONFIDENCE - 0.01)) is None


def test_a_leak_alert_names_the_district_and_the_leak():
    alert = assess_leak(leak(litres_per_hour=12_345.6))
    assert alert
    assert alert.alert_id == "leak:harbour/2026-11-21/1"
    assert alert.title == "Leak of about 12,346 litres an hour in Harbour, night of 2026-11-21"


def test_a_leak_in_an_unknown_district_is_an_alert():
    alert = assess_leak(leak(district_id="new-quarter"))
    assert alert
    assert alert.district_id == "new-quarter"
    assert "new-quarter" in alert.title


def test_quakes_and_leaks_can_have_every_severity():
    assert {rule.severity for rule in QUAKE_RULES} == {rule.severity for rule in LEAK_RULES} == set(Severity)


def test_an_event_without_rules_raises():
    with pytest.raises(TypeError, match="ServiceRequest"):
        assess(example(ServiceRequest))
