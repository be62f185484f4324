"""The report as one HTML page: no script, no external address, colors for light mode, dark mode and paper."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from include.water.dashboards.report import charts, rows
from include.water.dashboards.report.data import ReportData
from include.water.dashboards.report.headline import deck, headline
from include.water.dashboards.report.numbers import moment, period
from include.water.dashboards.report.svg import to_svg
from include.water.dashboards.report.unusual import unusual, unusual_summary

FOLDER = Path(__file__).parent
STYLE = (FOLDER / "report.css").read_text()


def style_source(style: str) -> str:
    """A source of a content security policy that allows only this style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"


# In the page itself, so that a saved copy loads nothing and runs nothing either.
POLICY = f"default-src 'none'; style-src {style_source(STYLE)}; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Drawing:
    wide: Markup
    narrow: Markup


def render(data: ReportData) -> str:
    """The report as an HTML page. All texts in `data` are escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((FOLDER / "report.html.j2").read_text())
    span = period(*data.period) if data.period else ""
    with_balance = rows.by_loss(data.districts)
    has_nights = any(night.loss_lph is not None for district in data.districts for night in district.nights)
    return template.render(
        policy=POLICY,
        style=Markup(STYLE),
        title=f"Water network report{', ' + span if span else ''}",
        headline=headline(data),
        deck=deck(data),
        warnings=rows.warnings(data),
        span=span,
        up_to=moment(data.data_up_to, data.timezone) if data.data_up_to else None,
        computed_at=moment(data.computed_at, data.timezone),
        timezone=data.timezone,
        figures=rows.figures(data),
        balance=rows.balance(data),
        balance_note=rows.balance_note(data),
        days=rows.days(data),
        districts=rows.districts(data),
        has_before=data.before is not None,
        leaks=rows.leaks(data),
        leaks_summary=rows.leaks_summary(data),
        unusual=unusual(data),
        unusual_summary=unusual_summary(data),
        quality=rows.quality(data),
        model=rows.model(data),
        daily=_draw(data.days, charts.daily_balance, data.days, name="daily", title="Water balance by day"),
        losses=_draw(with_balance, charts.losses_by_district, with_balance, name="losses", title="Losses by district"),
        nights=_draw(
            has_nights, charts.night_losses, data.districts, data.leaks or (), name="nights", title="Loss at night"
        ),
        night_names=[district.name for district in data.districts if district.nights],
        night_rows=rows.nights(data),
    )


def _draw(has_data: Any, chart: Callable[..., Any], *parts: Any, name: str, title: str) -> Drawing | None:
    """Draw a chart in both widths.

    Args:
        has_data: Nothing is drawn if this is falsy.
        chart: One of `charts`.
        *parts: Its data.
        name: The prefix of the drawing's ids.
        title: The drawing's title, for screen readers.

    Returns:
        The drawings; None without data.
    """
    if not has_data:
        return None
    description = "Its figures are in the table that follows."
    return Drawing(
        to_svg(chart(*parts, width=charts.WIDE), f"{name}-wide", title, description),
        to_svg(chart(*parts, width=charts.NARROW), f"{name}-narrow", title, description),
    )
