"""The report's charts. Each is drawn twice, for a wide and for a narrow page, because text must not shrink on a phone.

Colors are variables of the page's style, so that one drawing works in light mode, in dark mode and on paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from include.water.dashboards.report.data import Day, District, Leak
from include.water.dashboards.report.numbers import short_day
from include.water.dashboards.report.svg import plain

if TYPE_CHECKING:
    import altair as alt

# Widths of the drawing in pixels: a column on a desktop, and a phone.
WIDE, NARROW = 920, 360

INK, MUTED, LINE = "var(--ink)", "var(--muted)", "var(--line)"
METERED, LOSS, LOSS_SOFT, ALERT = "var(--metered)", "var(--loss)", "var(--loss-soft)", "var(--alert)"


def daily_balance(days: Sequence[Day], *, width: int) -> alt.TopLevelMixin:
    """Bars of the inflow per day, metered below and lost above; below the bars, the share that was lost.

    Args:
        days: The days in order, with volumes in liters.
        width: In pixels.
    """
    import altair as alt

    rows = [
        {
            "day": day.day.isoformat(),
            # A metered volume above the inlet's is a meter fault; the bar ends at the inflow.
            "metered": min(day.metered, day.inlet) / 1000,
            "inlet": day.inlet / 1000,
            "share": 100 * max(day.loss, 0.0) / day.inlet if day.inlet else None,
            "complete": day.complete,
        }
        for day in days
    ]
    x = alt.X("day:O", axis=_days_axis([day.day for day in days], width), title=None)
    base = alt.Chart(alt.Data(values=rows)).encode(x=x)
    bars = base.encode(opacity=alt.condition("datum.complete", alt.value(1), alt.value(0.4)))
    size = {"width": width - 56}
    metered = bars.mark_bar(color=METERED).encode(y=_y("metered:Q", "m³ a day"))
    lost = bars.mark_bar(color=LOSS).encode(y="metered:Q", y2="inlet:Q")
    volumes = alt.layer(metered, lost).properties(height=200, **size)
    # Incomplete days are left out: their share would cover only the known hours.
    known = base.transform_filter("datum.complete")
    last = max((day.day for day in days if day.complete), default=None)
    label = known.transform_filter(f"datum.day === '{last}'").transform_calculate(
        text="format(datum.share, '.1f') + '%'"
    )
    share = alt.layer(
        known.mark_area(color=LOSS_SOFT).encode(y=_y("share:Q", "Share lost, %", count=3)),
        known.mark_line(color=LOSS, strokeWidth=2).encode(y="share:Q"),
        known.mark_circle(color=LOSS, size=22, opacity=1).encode(y="share:Q"),
        label.mark_text(color=INK, dy=-11, fontSize=12, fontWeight=600).encode(y="share:Q", text="text:N"),
    ).properties(height=86, **size)
    return _styled(alt.vconcat(volumes, share, spacing=26).resolve_scale(x="shared"))


def losses_by_district(districts: Sequence[District], *, width: int) -> alt.TopLevelMixin:
    """A bar for each district's loss, a tick for the previous period, and the share at the bar's end.

    Args:
        districts: In the order of the chart; districts without a balance are left out.
        width: In pixels.
    """
    import altair as alt

    rows = [
        {
            "district": plain(district.name),
            "loss": district.balance.loss / 1000,
            "before": district.before.loss / 1000 if district.before else None,
            "text": "" if district.balance.loss_share is None else f"{100 * district.balance.loss_share:.1f}%",
        }
        for district in districts
        if district.balance
    ]
    order = [row["district"] for row in rows]
    # Space for the widest name in the reader's own font, which differs from the font of the drawing.
    room = 96
    axis = alt.Axis(
        labelLimit=room, minExtent=room, labelColor=INK, labelFontSize=13, domain=False, ticks=False, labelPadding=8
    )
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("district:N", sort=order, axis=axis, title=None))
    x_axis = alt.Axis(tickCount=4 if width == NARROW else 6, domain=False, ticks=False, grid=True)
    ends = [max(row["loss"], row["before"] or 0.0) for row in rows]
    # Longer than the longest bar, to leave space for its label.
    domain = [
        min([0.0, *(row["loss"] for row in rows)]),
        max([0.001, *ends]) * (1.22 if width == NARROW else 1.1),
    ]
    x = alt.X("loss:Q", axis=x_axis, title="m³ a day", scale=alt.Scale(domain=domain, nice=False))
    bars = base.mark_bar(color=LOSS, height={"band": 0.56}).encode(x=x)
    ticks = base.mark_tick(color=INK, thickness=2, height={"band": 0.86}).encode(x="before:Q")
    # Right of both the bar and the tick: otherwise the label would be drawn over one of them.
    label = base.transform_calculate(end="max(datum.loss, datum.before, 0)")
    texts = label.mark_text(align="left", dx=7, color=INK, fontSize=12, fontWeight=600).encode(x="end:Q", text="text:N")
    return _styled(alt.layer(bars, ticks, texts).properties(width=width - room - 10, height=34 * len(rows)))


def night_losses(districts: Sequence[District], leaks: Sequence[Leak], *, width: int) -> alt.TopLevelMixin:
    """A panel for each district: its loss in each night, all on one scale; nights with a leak are marked.

    Args:
        districts: With their nights.
        leaks: The leaks to mark.
        width: In pixels, of the whole chart.
    """
    import altair as alt

    leaking = {
        (plain(leak.district), leak.first_night + timedelta(days=n))
        for leak in leaks
        for n in range((leak.last_night - leak.first_night).days + 1)
    }
    rows = [
        {
            "district": plain(district.name),
            "night": night.night.isoformat(),
            "loss": night.loss_lph,
            "complete": night.complete,
            "leak": (plain(district.name), night.night) in leaking,
        }
        for district in districts
        for night in district.nights
    ]
    columns = 2 if width == NARROW else 4
    nights = sorted({night.night for district in districts for night in district.nights})
    names = [plain(district.name) for district in districts if district.nights]
    labelled = [nights[0], nights[-1]] if len(nights) > 1 else nights
    axis = _days_axis(nights, width, shown=labelled)
    # Two dates per panel, each inside the panel: otherwise the dates of neighboring panels would touch.
    axis.labelAlign = {"condition": {"test": "datum.index === 0", "value": "left"}, "value": "right"}
    base = alt.Chart().encode(x=alt.X("night:O", axis=axis, title=None))
    y = _y("loss:Q", None, count=3)
    panel = alt.layer(
        base.mark_area(color=LOSS_SOFT, line={"color": LOSS, "strokeWidth": 1.5}).encode(y=y),
        base.transform_filter("datum.leak && isValid(datum.loss)")
        .mark_circle(color=ALERT, size=34, opacity=1)
        .encode(y="loss:Q"),
        base.transform_filter("!datum.complete && isValid(datum.loss)")
        .mark_point(color=MUTED, size=26, filled=False, strokeWidth=1.4, opacity=1)
        .encode(y="loss:Q"),
    ).properties(width=(width - 60 - 22 * (columns - 1)) / columns, height=96, data=alt.Data(values=rows))
    header = alt.Header(
        title=None,
        labelAnchor="start",
        labelFontSize=13,
        labelFontWeight=600,
        labelColor=INK,
        labelLimit=140,
        labelPadding=6,
    )
    facet = alt.Facet("district:N", sort=names, header=header)
    return _styled(panel.facet(facet, columns=columns).properties(spacing={"row": 16, "column": 22}))


def _y(field: str, title: str | None, count: int = 4) -> alt.Y:
    import altair as alt

    # Losses below zero occur (a meter that counts too much), so the scale includes them.
    return alt.Y(
        field, title=title, axis=alt.Axis(tickCount=count, domain=False, ticks=False), scale=alt.Scale(zero=True)
    )


def _days_axis(days: Sequence[date], width: int, shown: Sequence[date] | None = None) -> alt.Axis:
    """An axis of days with labels for as many days as fit, or for `shown`."""
    import altair as alt

    if shown is None:
        step = max(1, -(-len(days) // (5 if width == NARROW else 10)))
        # Counted from the end: people look for the last day.
        shown = days[::-1][::step][::-1]
    names = {day.isoformat(): short_day(day) for day in shown}
    cases = " : ".join(f"datum.value === '{key}' ? '{name}'" for key, name in names.items())
    return alt.Axis(
        values=list(names),
        labelExpr=f"{cases} : ''" if cases else "''",
        labelAngle=0,
        labelOverlap=False,
        ticks=False,
        domainColor=LINE,
    )


def _styled(chart: Any) -> alt.TopLevelMixin:
    axis = {"labelColor": MUTED, "titleColor": MUTED, "gridColor": LINE, "labelFontSize": 12, "titleFontSize": 12}
    return (
        chart.configure(background="transparent", padding=2)
        .configure_axis(**axis, titleFontWeight="normal", labelPadding=6)
        .configure_axisY(titleAngle=0, titleAlign="left", titleAnchor="end", titleX=0, titleY=-10)
        .configure_view(stroke=None)
        .configure_bar(discreteBandSize={"band": 0.78})
    )
