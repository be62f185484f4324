"""What of this example's own tables goes by age, beside what every consumer has."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from include.operations.retention import Rule, prune, rules
from include.water.tables import published_seismic_events
from include.water.topics import TOPICS

# The feed shows a month at most: what is older is never asked about again.
PUBLISHED_KEPT = timedelta(days=60)


def prune_all(days: Mapping[str, int | None], *, seconds: float) -> dict[str, int]:
    """Remove what is done and old; `days` by name as `include.operations.retention.rules` takes them.

    Returns how many rows went, by table. Raises RetentionTooShort.
    """
    published = Rule(published_seismic_events, "published_at", PUBLISHED_KEPT)
    return prune([*rules(TOPICS, **days), published], seconds=seconds)  # type: ignore[arg-type]
