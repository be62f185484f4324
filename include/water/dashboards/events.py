"""What a message on `alerts.raised` says to the live board: which tile it concerns, and nothing else.

Imported by the triggerer and by Dag files: it costs pydantic.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from include.contracts.violations import ContractViolation
from include.water.sites import DISTRICTS
from include.water.topics import ALERTS_RAISED, AlertRaised

# The tile of what lies in no district that the network knows.
ELSEWHERE = "elsewhere"


class KafkaMessage(Protocol):
    def value(self) -> bytes | None: ...


def tile_for(district_id: str | None) -> str:
    return district_id if district_id is not None and district_id in DISTRICTS else ELSEWHERE


def tile_of(message: KafkaMessage) -> dict[str, Any]:
    """The payload of the asset event: {"tile", "alert_id"}, or {"tile": None} for a message that breaks its contract.

    Called by the stock trigger, so it never raises (the trigger would fail at this message again and again) and never
    returns nothing (the trigger would pass over the message). Nothing that a person wrote gets into the payload, which
    stays in Airflow's metadata database.
    """
    try:
        event = ALERTS_RAISED.parse(message.value())
    except ContractViolation:
        # An alert may stand behind it all the same: look at all tiles.
        return {"tile": None}
    assert isinstance(event, AlertRaised)
    return {"tile": tile_for(event.district_id), "alert_id": event.alert_id}


def named_tiles(payloads: Iterable[Any]) -> set[str] | None:
    """The tiles that the payloads of a run's asset events name; None for all tiles.

    None too when there is no event (a run by the clock or by hand) or a payload is not one of `tile_of`.
    """
    named: set[str] = set()
    for payload in payloads:
        tile = payload.get("tile") if isinstance(payload, dict) else None
        if not isinstance(tile, str) or tile_for(tile) != tile:
            return None
        named.add(tile)
    return named or None
