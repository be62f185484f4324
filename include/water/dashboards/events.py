"""The live board's part of a message on `alerts.raised`: only the tile that the alert concerns.

The triggerer and Dag files import this module; its only heavy import is pydantic.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from include.streams.contracts.violations import ContractViolation
from include.water.sites import DISTRICTS
from include.water.topics import ALERTS_RAISED, AlertRaised

# The tile of alerts in no known district.
ELSEWHERE = "elsewhere"


class KafkaMessage(Protocol):
    def value(self) -> bytes | None: ...


def tile_for(district_id: str | None) -> str:
    return district_id if district_id is not None and district_id in DISTRICTS else ELSEWHERE


def tile_of(message: KafkaMessage) -> dict[str, Any]:
    """The payload of the asset event: {"tile", "alert_id"}, or {"tile": None} for a message that breaks its contract.

    The stock trigger calls this function. It never raises: the trigger would fail at this message again and again. It
    never returns None: the trigger would skip the message. The payload contains no text that a person wrote, because
    the payload stays in Airflow's metadata database.

    Args:
        message: The Kafka message.
    """
    try:
        event = ALERTS_RAISED.parse(message.value())
    except ContractViolation:
        # An alert may exist although its message is invalid: refresh all tiles.
        return {"tile": None}
    assert isinstance(event, AlertRaised)
    return {"tile": tile_for(event.district_id), "alert_id": event.alert_id}


def named_tiles(payloads: Iterable[Any]) -> set[str] | None:
    """The tiles that the payloads of a run's asset events name; None means all tiles.

    It is also None when there is no event (a run by schedule or by hand) or when a payload does not come from
    `tile_of`.

    Args:
        payloads: The payloads of the run's asset events.
    """
    named: set[str] = set()
    for payload in payloads:
        tile = payload.get("tile") if isinstance(payload, dict) else None
        if not isinstance(tile, str) or tile_for(tile) != tile:
            return None
        named.add(tile)
    return named or None
