"""The tools with which the model looks things up for one request. All tools are read-only.

Customer and district come from the message. The model cannot ask about others: no tool has an argument for them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from include.streams.inference.agent import Found, Tool
from include.streams.inference.redaction import clean, redact
from include.water.sites import DISTRICTS, SITES
from include.water.topics import ServiceRequest

RUNBOOKS = Path(__file__).with_name("runbooks")
MAX_ROWS = 10
EARLIER_DAYS, ALERT_DAYS = 90, 7
# An agent that waits for the database occupies a pool slot.
STATEMENT_SECONDS = 3


class Nothing(BaseModel):
    """A tool without arguments."""

    model_config = ConfigDict(extra="forbid")


class Query(BaseModel):
    model_config = ConfigDict(extra="forbid")

    query: Annotated[str, Field(min_length=2, max_length=200, description="what to look for, in English")]


def tools_for(request: ServiceRequest) -> tuple[Tool, ...]:
    """The tools for one request, bound to its customer and district."""
    return (
        Tool(
            "earlier_requests",
            f"Decisions on earlier requests of this customer, {EARLIER_DAYS} days back, the latest first.",
            Nothing,
            lambda _: earlier_requests(request),
        ),
        Tool(
            "nearby_alerts",
            f"Earthquake and leak alerts of the request's district, {ALERT_DAYS} days back, the most severe first.",
            Nothing,
            lambda _: nearby_alerts(request),
        ),
        Tool(
            "search_runbooks",
            "Instructions for the people on duty: what counts as urgent, what to do about what.",
            Query,
            lambda arguments: search_runbooks(arguments.query),
        ),
        Tool(
            "network_sites",
            "Plants, pumps, tanks and mains of the request's district.",
            Nothing,
            lambda _: network_sites(request),
        ),
    )


def earlier_requests(request: ServiceRequest) -> Found:
    from sqlalchemy import func, select, text

    from include.water.tables import decisions

    columns = decisions.c
    query = (
        select(
            columns.decision_id,
            columns.category,
            columns.severity,
            columns.action,
            columns.state,
            columns.summary,
            columns.decided_at,
        )
        .where(
            columns.customer_id == request.customer_id,
            # A message that is read again must not find itself.
            columns.request_id != request.request_id,
            columns.decided_at > func.now() - text(f"interval '{EARLIER_DAYS} days'"),
        )
        .order_by(columns.decided_at.desc())
        .limit(MAX_ROWS)
    )
    return _found(query, "decision_id")


def nearby_alerts(request: ServiceRequest) -> Found:
    from sqlalchemy import func, select, text

    from include.water.tables import alerts

    columns = alerts.c
    if request.district_id not in DISTRICTS:
        return Found("The district of the request is not known.")
    query = (
        select(columns.alert_id, columns.kind, columns.severity, columns.title, columns.site_id, columns.updated_at)
        .where(
            columns.district_id == request.district_id,
            columns.updated_at > func.now() - text(f"interval '{ALERT_DAYS} days'"),
        )
        .order_by(columns.severity_rank.desc(), columns.updated_at.desc())
        .limit(MAX_ROWS)
    )
    return _found(query, "alert_id")


def search_runbooks(query: str) -> Found:
    """The two runbooks whose beginning is nearest to the query."""
    texts = _runbooks()
    (matches,) = _runbook_index().nearest([query])
    best = [match.name for match in matches[:2]]
    return Found([{"id": name, "text": texts[name]} for name in best], tuple(best))


def network_sites(request: ServiceRequest) -> Found:
    district = DISTRICTS.get(request.district_id or "")
    if district is None:
        return Found("The district of the request is not known.")
    sites = [site for site in SITES.values() if site.district_id == district.district_id]
    content = {
        "district": district.name,
        "sites": [{"id": site.site_id, "name": site.name, "kind": site.kind} for site in sites],
    }
    return Found(content, tuple(site.site_id for site in sites))


def _found(query: Any, id_column: str) -> Found:
    from sqlalchemy import text

    from include.streams import begin

    with begin() as connection:
        connection.execute(text(f"set local statement_timeout = '{STATEMENT_SECONDS}s'"))
        rows = [dict(row) for row in connection.execute(query).mappings()]
    return Found([_shown(row) for row in rows], tuple(str(row[id_column]) for row in rows))


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Clean titles and summaries like the request itself: they come from texts of other senders."""
    return {
        name: redact(clean(value, 300).text).text if name in ("title", "summary") else value
        for name, value in row.items()
    }


@cache
def _runbooks() -> dict[str, str]:
    return {f"runbook:{path.stem}": path.read_text(encoding="utf-8") for path in sorted(RUNBOOKS.glob("*.md"))}


@cache
def _runbook_index() -> Any:
    from include.streams.inference.embeddings import Examples

    # The beginning says what a runbook is about; the embedding model does not read more.
    return Examples({name: text[:600] for name, text in _runbooks().items()})
