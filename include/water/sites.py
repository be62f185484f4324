"""The utility's network: its districts, and the sites where an earthquake could do harm.

Static data of an invented utility. The coordinates are around San Francisco Bay, where the real feed of earthquakes has
events every day.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class District:
    """A part of the network with its own inlet meter. Inflow that no customer's meter counts is lost."""

    district_id: str
    name: str
    latitude: float
    longitude: float
    inlet_meter_id: str
    meters: int


@dataclass(frozen=True)
class Site:
    """A building or structure of the network."""

    site_id: str
    name: str
    kind: str
    district_id: str
    latitude: float
    longitude: float


def _by_id(items, attribute):
    return MappingProxyType({getattr(item, attribute): item for item in items})


DISTRICTS = _by_id(
    (
        District("harbour", "Harbour", 37.795, -122.279, "M-900001", 420),
        District("hillside", "Hillside", 37.846, -122.214, "M-900002", 310),
        District("lakeview", "Lakeview", 37.811, -122.247, "M-900003", 380),
        District("old-town", "Old Town", 37.872, -122.271, "M-900004", 450),
        District("riverbend", "Riverbend", 37.700, -122.126, "M-900005", 290),
        District("southfield", "Southfield", 37.656, -122.083, "M-900006", 340),
        District("valley", "Valley", 37.702, -121.936, "M-900007", 360),
        District("westshore", "Westshore", 37.915, -122.331, "M-900008", 270),
    ),
    "district_id",
)

SITES = _by_id(
    (
        Site("dam-upper", "Upper Reservoir Dam", "dam", "hillside", 37.886, -122.141),
        Site("dam-valley", "Valley Dam", "dam", "valley", 37.614, -121.747),
        Site("plant-north", "North Treatment Plant", "treatment", "westshore", 37.951, -122.318),
        Site("plant-south", "South Treatment Plant", "treatment", "southfield", 37.623, -122.046),
        Site("pump-harbour", "Harbour Pumping Station", "pumping", "harbour", 37.801, -122.291),
        Site("pump-hillside", "Hillside Pumping Station", "pumping", "hillside", 37.838, -122.201),
        Site("pump-riverbend", "Riverbend Pumping Station", "pumping", "riverbend", 37.707, -122.133),
        Site("tank-lakeview", "Lakeview Tank", "tank", "lakeview", 37.818, -122.236),
        Site("tank-old-town", "Old Town Tank", "tank", "old-town", 37.884, -122.254),
        Site("tunnel-east", "East Bay Tunnel", "tunnel", "old-town", 37.867, -122.222),
        Site("main-crossing", "Bay Crossing Main", "main", "harbour", 37.769, -122.306),
        Site("pump-valley", "Valley Pumping Station", "pumping", "valley", 37.689, -121.921),
    ),
    "site_id",
)
