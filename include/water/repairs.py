"""Repairs of the example's messages, which `replay_dead_letters` tries on messages in a dead-letter topic.

Delete a repair when no dead letter needs it any more.
"""

from __future__ import annotations

from include.streams import Repairs
from include.streams.contracts.repairs import to_document
from include.water.topics import SEISMIC_EVENTS, SERVICE_REQUESTS

REPAIRS = Repairs()

# The customers' app called two fields by its own names until its release 4.3.
REPAIRS.renamed(SERVICE_REQUESTS, {"message": "text", "title": "subject"})


@REPAIRS.repair(SEISMIC_EVENTS)
def adapted_again(value: bytes) -> bytes | None:
    """Convert a dead letter of the feed, whose value is the feed's own JSON, with the current adapter.

    After a change of the feed's format, an older adapter could not convert the feature.
    """
    from include.water.feeds.seismic import to_event

    feature = to_document(value)
    if feature is None or feature.get("type") != "Feature":
        return None
    return SEISMIC_EVENTS.serialize(to_event(feature))[1]
