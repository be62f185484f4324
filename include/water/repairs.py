"""Repairs of the example's messages: what `replay_dead_letters` tries on what waits in a dead-letter topic.

A repair may go when the last dead letter that needs it has gone.
"""

from __future__ import annotations

from include.contracts.repairs import Repairs, to_document
from include.water.topics import SEISMIC_EVENTS, SERVICE_REQUESTS

REPAIRS = Repairs()

REPAIRS.renamed(
    SERVICE_REQUESTS,
    "the customers' app called two fields by its own names until its release 4.3",
    {"message": "text", "title": "subject"},
)


@REPAIRS.repair(SEISMIC_EVENTS, "the feed's adapter could not read what the feed sends since it has changed")
def adapted_again(value: bytes) -> bytes | None:
    """A dead letter of the feed is the feed's own JSON: read it with the adapter as it is now."""
    from include.water.feeds.seismic import to_event

    feature = to_document(value)
    if feature is None or feature.get("type") != "Feature":
        return None
    return SEISMIC_EVENTS.serialize(to_event(feature))[1]
