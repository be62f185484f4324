"""One JSON object for each customer, as the utility's app reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC
from typing import Any

from pydantic import TypeAdapter

from include.water.flows.definition import TIME_ZONE
from include.water.topics import CustomerId

FOLDER = "usage/customers"
JSON = "application/json"
# As many days as the app shows.
SHOWN_DAYS = 30
_CUSTOMER_ID = TypeAdapter(CustomerId)


def path_of(customer_id: str) -> str:
    """Where a customer's object is. Raises ValueError for what is no customer's id: it would be part of a path."""
    return f"{FOLDER}/{_CUSTOMER_ID.validate_python(customer_id, strict=True)}.json"


def documents(days: Iterable[Mapping[str, Any]], flows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By customer; `days` and `flows` as in `compute.Usage`, whole litres, the newest day first.

    Nothing in it changes unless the customer's usage, or that of the group, does: what is the same is not written.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(days, key=lambda row: row["day"], reverse=True):
        document = found.setdefault(
            row["customer_id"],
            {
                "version": 1,
                "customer_id": row["customer_id"],
                "time_zone": str(TIME_ZONE),
                "household": row["household"],
                "continuous_flow": None,
                "days": [],
            },
        )
        if len(document["days"]) < SHOWN_DAYS:
            document["days"].append(_day(row))
    for row in flows:
        # Only what runs now is a warning; what has ended is in the days.
        if row["running"]:
            found[row["customer_id"]]["continuous_flow"] = {
                "since": row["starts_at"].astimezone(UTC).isoformat(),
                "hours": row["hours"],
                # What ran when least was used is what leaks.
                "litres_per_hour": row["least_litres_per_hour"],
            }
    return found


def _day(row: Mapping[str, Any]) -> dict[str, Any]:
    peers = None
    if row["peer_group"]:
        peers = {
            "group": row["peer_group"],
            "households_at_least": row["peer_households"],
            "low": round(row["peer_low"]),
            "median": round(row["peer_median"]),
            "high": round(row["peer_high"]),
        }
    return {
        "day": row["day"].isoformat(),
        "litres": round(row["litres"]),
        "complete": row["complete"],
        "known_hours": row["known_hours"],
        "hours": row["expected_hours"],
        "continuous_flow": row["continuous_flow"],
        "like_households": peers,
    }


def encode(document: Mapping[str, Any], as_of: int) -> bytes:
    """as_of: a number that grows with the flows; says which of two objects is the newer one."""
    return json.dumps({**document, "as_of": as_of}, separators=(",", ":")).encode()


def content_hash(document: Mapping[str, Any]) -> str:
    """Of what it says; `as_of` is no part of it."""
    body = json.dumps({k: v for k, v in document.items() if k != "as_of"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()[:24]
