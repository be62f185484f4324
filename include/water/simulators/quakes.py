"""Simulated earthquakes in the format of the USGS feed, with revisions that arrive over time.

They are a function of seed and time, without state: a server that is killed and restarted shows the same earthquakes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any

from include.water.sites import SITES

Feature = dict[str, Any]

# Real events are revised over days. Seconds after the event: first published, then recomputed, then reviewed.
REVISED_AFTER_SECONDS = (3, 20, 75, 240)
NEAR_THE_NETWORK = 0.6  # the share of earthquakes that could raise an alert
# A few real events turn out to be no earthquakes; the feed then drops them.
WITHDRAWN, WITHDRAWN_AFTER_SECONDS = 0.03, 120


@dataclass(frozen=True)
class Quakes:
    """An earthquake every `interval_seconds`, none before `since`; one in `bad_every` breaks the format (0: none)."""

    seed: int
    since: datetime
    interval_seconds: float = 15.0
    bad_every: int = 0

    def features(self, now: datetime, back: timedelta) -> list[Feature]:
        """The features of the feed at a time.

        Args:
            now: The time.
            back: How far back the feed goes.

        Returns:
            The newest revision of each earthquake, newest first.
        """
        return list(self._features(now.timestamp(), max(now - back, self.since).timestamp()))

    def _features(self, now: float, since: float) -> Iterator[Feature]:
        first, last = math.ceil(since / self.interval_seconds), math.floor(now / self.interval_seconds)
        for number in range(last, first - 1, -1):
            feature = self._feature(number, now)
            if feature is not None:
                yield feature

    def _feature(self, number: int, now: float) -> Feature | None:
        occurred = number * self.interval_seconds
        revision = sum(1 for seconds in REVISED_AFTER_SECONDS if occurred + seconds <= now) - 1
        random = Random(f"{self.seed}/{number}")
        withdrawn = random.random() < WITHDRAWN and now > occurred + WITHDRAWN_AFTER_SECONDS
        if revision < 0 or withdrawn:
            return None
        feature = _quake(random, f"sim{self.seed}x{number}", occurred, revision)
        if self.bad_every and number % self.bad_every == 0:
            _break(feature, number // self.bad_every)
        return feature


def _quake(random: Random, seismic_id: str, occurred: float, revision: int) -> Feature:
    # For each unit of magnitude less there are ten times as many earthquakes (Gutenberg and Richter), from 1.5 up.
    magnitude = min(1.5 + random.expovariate(math.log(10) * 0.55), 7.8)
    site = random.choice(list(SITES.values()))
    if random.random() < NEAR_THE_NETWORK:
        latitude, longitude = site.latitude + random.gauss(0, 0.25), site.longitude + random.gauss(0, 0.3)
        place = f"{random.randint(1, 40)} km {random.choice(['N', 'E', 'S', 'W'])} of {site.name}"
    else:
        latitude, longitude = random.uniform(-60, 70), random.uniform(-179.9, 179.9)
        place = "far away"
    depth_km = random.uniform(1, 18)
    for _ in range(revision):  # a revision corrects the previous one
        magnitude += random.gauss(0, 0.2)
        depth_km = max(0.1, depth_km + random.gauss(0, 1))
    updated = occurred + REVISED_AFTER_SECONDS[revision]
    reviewed = revision == len(REVISED_AFTER_SECONDS) - 1
    return {
        "type": "Feature",
        "properties": {
            "mag": round(magnitude, 2),
            "place": place,
            "time": int(occurred * 1000),
            "updated": int(updated * 1000),
            "tz": None,
            "url": f"http://localhost/earthquakes/eventpage/{seismic_id}",
            "felt": None,
            "alert": None,
            "status": "reviewed" if reviewed else "automatic",
            "tsunami": 0,
            "sig": round(magnitude**2 * 20),
            "net": "sim",
            "code": seismic_id.removeprefix("sim"),
            "ids": f",{seismic_id},",
            "magType": "mw" if reviewed else "ml",
            "type": "earthquake",
            "title": f"M {magnitude:.1f} - {place}",
        },
        "geometry": {
            "type": "Point",
            "coordinates": [round(longitude, 4), round(latitude, 4), round(depth_km, 2)],
        },
        "id": seismic_id,
    }


def _break(feature: Feature, way: int) -> None:
    properties, coordinates = feature["properties"], feature["geometry"]["coordinates"]
    match way % 4:
        case 0:
            properties["mag"] = str(properties["mag"])
        case 1:
            del feature["id"]
        case 2:
            coordinates[1] += 200
        case 3:
            properties["status"] = "guessed"
