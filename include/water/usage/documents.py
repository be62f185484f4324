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
# The number of days that the app shows.
SHOWN_DAYS = 30
_CUSTOMER_ID = TypeAdapter(CustomerId)


def path_of(customer_id: str) -> str:
    """The path of a customer's object. Raises ValueError for an invalid id, because the id becomes part of a path."""
    return f"{FOLDER}/{_CUSTOMER_ID.validate_python(customer_id, strict=True)}.json"


def customer_of(path: str) -> str | None:
    """The customer whose object has this path; None for another object."""
    customer_id = path.removeprefix(f"{FOLDER}/").removesuffix(".json")
    try:
        return customer_id if path_of(customer_id) == path else None
    except ValueError:
        return None


def documents(days: Iterable[Mapping[str, Any]], flows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Build the documents of all customers, with whole liters and the newest day first.

    A document changes only when the usage of the customer or of the group changes: an unchanged document is not
    written.

    Args:
        days: Rows as in `compute.Usage`.
        flows: Rows as in `compute.Usage`. Flows of customers without days are ignored; they are from the hours before
            the days.

    Returns:
        {customer id: document}.
    """
    by_customer: dict[str, dict[str, Any]] = {}
    for row in sorted(days, key=lambda row: row["day"], reverse=True):
        document = by_customer.setdefault(
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
        # Only a flow that is running now is a warning; the days show flows that have ended.
        if row["running"] and (document := by_customer.get(row["customer_id"])):
            document["continuous_flow"] = {
                "since": row["starts_at"].astimezone(UTC).isoformat(),
                "hours": row["hours"],
                # The leak is at most the flow of the hour with the lowest use.
                "litres_per_hour": row["least_litres_per_hour"],
            }
    return by_customer


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
    """The document as JSON.

    Args:
        document: The document.
        as_of: The number of the publication (`Manifest.begin`); it shows which of two objects is newer.
    """
    return json.dumps({**document, "as_of": as_of}, separators=(",", ":")).encode()


def content_hash(document: Mapping[str, Any]) -> str:
    """A hash of the document's content, without `as_of`."""
    body = json.dumps({k: v for k, v in document.items() if k != "as_of"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()[:24]
