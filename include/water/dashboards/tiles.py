"""The tiles of the live board: the open alerts of each district."""

from __future__ import annotations

import logging
from collections.abc import Collection
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Integer, Subquery, and_, case, cast, func, select
from sqlalchemy.dialects.postgresql import insert

from include.water.dashboards.events import ELSEWHERE
from include.water.sites import DISTRICTS, SITES
from include.water.tables import alerts, board_tiles
from include.water.topics import Severity

log = logging.getLogger(__name__)

TILES: tuple[str, ...] = (*DISTRICTS, ELSEWHERE)
# An alert has no end. It counts as open for a day after it was raised, or raised to a higher severity.
OPEN_FOR = timedelta(hours=24)
# Alerts listed on a tile; the counts include all alerts.
MAX_ALERTS = 20


def refresh(connection: Connection, named: Collection[str] | None = None) -> list[str]:
    """Recompute the named tiles, and all tiles that are behind the alerts.

    An event can be lost, or merged with an event of another tile. The next event, for any tile, repairs this, because
    tiles that are behind are refreshed too.

    Args:
        connection: A transaction on the operational database.
        named: The tiles; None for all tiles.

    Returns:
        The tiles that were refreshed.
    """
    tiles = sorted(TILES if named is None else {*named, *behind(connection)})
    since = func.now() - OPEN_FOR
    for tile, content in _contents(connection, tiles).items():
        statement = insert(board_tiles).values(tile=tile, content=content, since=since)
        changes = {"content": statement.excluded.content, "since": since, "refreshed_at": func.now()}
        connection.execute(statement.on_conflict_do_update(index_elements=[board_tiles.c.tile], set_=changes))
    log.info("live board: refreshed %s", ", ".join(tiles))
    return tiles


def behind(connection: Connection) -> set[str]:
    """The tiles that do not show all alerts.

    The sums of the alerts' revisions are compared: the sum grows by one with each alert and each rise of severity.
    Times would not be reliable, because a transaction that began earlier may be committed later.
    """
    tiled = _alerts_with_tiles()
    shown = cast(board_tiles.c.content["revisions"].astext, Integer)
    query = (
        select(board_tiles.c.tile)
        .outerjoin(tiled, and_(tiled.c.tile == board_tiles.c.tile, tiled.c.updated_at > board_tiles.c.since))
        .group_by(board_tiles.c.tile)
        .having(func.coalesce(func.sum(tiled.c.revision), 0) == shown)
    )
    up_to_date = connection.scalars(query).all()
    return {tile for tile in TILES if tile not in up_to_date}


def _contents(connection: Connection, tiles: Collection[str]) -> dict[str, dict[str, Any]]:
    """{tile: {"counts": {severity: number}, "revisions": their sum, "alerts": the most severe and newest ones}}.

    One statement reads everything, so that the counts match the list.
    """
    tiled = _alerts_with_tiles()
    tile, order = (
        tiled.c.tile,
        (tiled.c.severity_rank.desc(), tiled.c.updated_at.desc(), tiled.c.alert_id),
    )
    ranked = (
        select(
            tiled,
            func.row_number().over(partition_by=tile, order_by=order).label("place"),
            func.sum(tiled.c.revision).over(partition_by=tile).label("revisions"),
            *(
                func.count().filter(tiled.c.severity == severity.value).over(partition_by=tile).label(severity.value)
                for severity in Severity
            ),
        )
        .where(tiled.c.updated_at > func.now() - OPEN_FOR, tile.in_(tiles))
        .subquery()
    )
    contents: dict[str, dict[str, Any]] = {
        tile: {"counts": dict.fromkeys(Severity, 0), "revisions": 0, "alerts": []} for tile in tiles
    }
    for row in connection.execute(select(ranked).where(ranked.c.place <= MAX_ALERTS).order_by(ranked.c.place)):
        content = contents[row.tile]
        content["revisions"] = int(row.revisions)
        content["counts"] = {severity: getattr(row, severity) for severity in Severity}
        site = SITES.get(row.site_id)
        content["alerts"].append(
            {
                "id": row.alert_id,
                "kind": row.kind,
                "severity": row.severity,
                "title": row.title,
                "site": site.name if site else None,
                "revision": row.revision,
                "raised_at": row.raised_at.isoformat(),
                "updated_at": row.updated_at.isoformat(),
            }
        )
    return contents


def _alerts_with_tiles() -> Subquery:
    """All alerts, each with its tile."""
    tile = case((alerts.c.district_id.in_(list(DISTRICTS)), alerts.c.district_id), else_=ELSEWHERE)
    return select(alerts, tile.label("tile")).subquery()
