"""The content of the live board, read from the operational database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from include.streams.operations.alarms import open_alarms
from include.water.dashboards.tiles import ELSEWHERE, TILES, behind
from include.water.sites import DISTRICTS, SITES
from include.water.tables import board_tiles, decisions

# As many as fit on a screen; the totals count all.
MAX_DECISIONS = 12
MAX_AWAITING = 8
MAX_ALARMS = 8


def read_board(connection: Connection) -> dict[str, Any]:
    """The tiles, decisions and alarms as a JSON document; times are in ISO 8601.

    The document changes only when the database changes, so that the server can answer 304 (not modified).
    """
    awaiting = decisions.c.state == "awaiting_approval"
    return {
        "tiles": _tiles(connection),
        "awaiting": {
            "total": connection.scalar(select(func.count()).where(awaiting)),
            "decisions": _decisions(
                connection,
                select(decisions)
                .where(awaiting)
                .order_by(decisions.c.severity_rank.desc(), decisions.c.deadline_at)
                .limit(MAX_AWAITING),
            ),
        },
        "decisions": _decisions(
            connection, select(decisions).where(~awaiting).order_by(decisions.c.decided_at.desc()).limit(MAX_DECISIONS)
        ),
        "alarms": _alarms(connection),
    }


def _tiles(connection: Connection) -> list[dict[str, Any]]:
    """One tile for each district, in the network's order, and one for elsewhere when it has open alerts."""
    rows = {row.tile: row for row in connection.execute(select(board_tiles))}
    outdated = behind(connection)
    tiles = []
    for tile in TILES:
        row, district = rows.get(tile), DISTRICTS.get(tile)
        content = row.content if row else {"counts": {}, "alerts": []}
        if tile == ELSEWHERE and not content["alerts"]:
            continue
        tiles.append(
            {
                "id": tile,
                "name": district.name if district else "Elsewhere",
                # The position on the map; null for elsewhere.
                "position": [district.longitude, district.latitude] if district else None,
                "counts": content["counts"],
                "alerts": content["alerts"],
                "refreshed_at": row.refreshed_at.isoformat() if row else None,
                "behind": tile in outdated,
            }
        )
    return tiles


def _decisions(connection: Connection, query: Select) -> list[dict[str, Any]]:
    return [_decision(row) for row in connection.execute(query)]


def _decision(row: Row) -> dict[str, Any]:
    """One decision, without the customer: a board on a wall must not show who asked."""
    district, site = DISTRICTS.get(row.district_id), SITES.get(row.target_id)
    target = {
        "customer": "the customer",
        "district": getattr(DISTRICTS.get(row.target_id), "name", row.target_id),
        "site": site.name if site else row.target_id,
    }.get(row.target_kind, row.target_kind)
    return {
        "id": row.decision_id,
        "category": row.category,
        "severity": row.severity,
        "summary": row.summary,
        "action": row.action,
        "target": target,
        "district": district.name if district else None,
        "state": row.state,
        "approval_run_id": row.approval_run_id,
        "engine": row.engine,
        "model": row.model_answered,
        "decided_at": row.decided_at.isoformat(),
        "deadline_at": row.deadline_at.isoformat() if row.deadline_at else None,
    }


def _alarms(connection: Connection) -> dict[str, Any]:
    alarms = open_alarms(connection)
    return {
        "total": len(alarms),
        "alarms": [
            {
                "id": row.id,
                "source": row.source,
                "kind": row.kind,
                "key": row.key,
                "message": row.message,
                "opened_at": row.opened_at.isoformat(),
            }
            for row in reversed(alarms[-MAX_ALARMS:])
        ],
    }
