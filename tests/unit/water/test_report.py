"""The executive report: its sentences for given data; and all texts in the data stay text."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser

import pytest

from include.water.dashboards.report.data import Balance, District, Leak, Model, Night, Quality, ReportData, Suite
from include.water.dashboards.report.headline import deck, headline
from include.water.dashboards.report.numbers import NONE, change, cubic_metres, moment, number, percent, period
from include.water.dashboards.report.render import POLICY, render, style_source
from include.water.dashboards.report.rows import balance as balance_rows
from include.water.dashboards.report.rows import warnings
from include.water.dashboards.report.svg import clean_svg
from include.water.dashboards.report.unusual import MAX_EPISODES, unusual
from tests.unit.water.report_sample import LAST_DAY, sample

HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}\x00\x1b\ud800"
NOW = datetime(2026, 11, 22, 21, tzinfo=UTC)
EMPTY = ReportData(computed_at=NOW, timezone="America/Los_Angeles")


class Page(HTMLParser):
    """The elements, attributes and text of a page, as in a browser."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def names(self) -> set[str]:
        return {name for name, _ in self.elements}


@pytest.fixture(scope="module")
def page() -> str:
    return render(sample())


def hostile() -> ReportData:
    data = sample()
    districts = tuple(replace(item, name=HOSTILE + item.name) for item in data.districts)
    leaks = tuple(replace(item, district=HOSTILE, severity=HOSTILE) for item in data.leaks or ())
    assert data.quality
    suites = (Suite(HOSTILE, False, NOW, 3, (HOSTILE,)),)
    quality = replace(data.quality, reasons=((HOSTILE, 3),), suites=suites)
    model = Model(HOSTILE, NOW, ((HOSTILE, HOSTILE),))
    return replace(data, districts=districts, leaks=leaks, quality=quality, model=model)


def test_names_reasons_and_messages_are_always_text(page: str):
    hostile_page = Page(render(hostile()))
    assert hostile_page.names() <= Page(page).names() | {"p"}
    assert not {"script", "img", "iframe", "a", "object"} & hostile_page.names()
    assert not [
        key for _, attributes in hostile_page.elements for key in attributes if key.startswith("on") or key == "style"
    ]
    # In the headline's sentence, the tables and the drawings.
    assert hostile_page.text.count("<script>alert(1)</script>") > 20
    assert "{{ 7*7 }}" in hostile_page.text


def test_the_page_names_no_address_and_its_policy_allows_none(page: str):
    found = Page(page)
    addresses = set(re.findall(r"[a-z]+://[^\"' <>]*", page))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of SVG, which nobody asks for"
    assert "url(" not in page
    assert "@import" not in page
    attributes = [(key, value) for _, every in found.elements for key, value in every.items()]
    assert [value for key, value in attributes if key in ("src", "href", "xlink:href", "action")] == ["data:,"]
    policy = next(every["content"] for _, every in found.elements if every.get("http-equiv"))
    assert policy == POLICY
    assert POLICY.startswith("default-src 'none'; ")
    assert "unsafe" not in POLICY
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style
    assert style_source(style.group(1)) in POLICY


def test_a_page_is_accessible_to_screen_readers(page: str):
    parsed = Page(page)
    assert dict(parsed.elements)["html"] == {"lang": "en"}
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [name for name, _ in parsed.elements if re.fullmatch("h[1-6]", name)][:3] == ["h1", "h2", "h2"]
    for name, attributes in parsed.elements:
        if name == "svg":
            assert attributes["role"] == "img"
            assert {attributes["aria-labelledby"], attributes["aria-describedby"]} <= set(ids)
        if name == "th":
            assert attributes["scope"] in ("row", "col")


def test_without_data_every_part_says_so():
    parsed = Page(render(EMPTY))
    assert "svg" not in parsed.names()
    for sentence in (
        "No hourly flows have been computed yet.",
        "No readings yet",
        "No district has hourly flows yet.",
        "The detection has not judged a night yet.",
        "Too few hours are known yet to say what is usual.",
        "No batch of readings has been processed yet.",
        "No model is in use yet",
    ):
        assert sentence in parsed.text


def test_one_district_with_one_night_makes_a_page():
    district = District("harbour", "Harbour", Balance(1000, 990, 24, 24), None, (Night(LAST_DAY, 12.5, True),))
    data = replace(EMPTY, districts=(district,), period=(LAST_DAY, LAST_DAY), data_up_to=NOW, days=sample().days[-1:])
    assert "1.0% of the water fed into the network on 21\xa0November was lost." in Page(render(data)).text


def balance(inlet: float, metered: float) -> Balance:
    return Balance(inlet, metered, 168, 168, 10)


def with_shares(now: float, before: float | None, days: int = 7) -> ReportData:
    then = None if before is None else balance(10_000, 10_000 - 100 * before)
    district = District("valley", "Valley", balance(10_000, 10_000 - 100 * now), then)
    return replace(EMPTY, districts=(district,), period=(LAST_DAY - timedelta(days=days - 1), LAST_DAY))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (with_shares(12, None), "12.0% … in the week to 21 November was lost."),
        (with_shares(12, 10), "12.0% … in the week to 21 November was lost, 2.0 points more than the week before."),
        (with_shares(9.5, 11), "9.5% … in the week to 21 November was lost, 1.5 points less than the week before."),
        (with_shares(9.5, 9.6), "9.5% … in the week to 21 November was lost, about as much as the week before."),
        (with_shares(8, 9, 3), "8.0% … 3 days to 21 November was lost, 1.0 points less than in the 3 days before."),
        (with_shares(-2, None), "The meters counted 2.0% more water than was fed in in the week to 21 November: …."),
    ],
)
def test_the_headline_has_the_loss_and_its_change(data: ReportData, sentence: str):
    start, end = sentence.split("…")
    said = headline(data).replace("\xa0", " ")
    assert said.startswith(start)
    assert said.endswith(end)


def test_a_comparison_needs_every_district_in_both_periods():
    data = with_shares(12, 10)
    other = District("harbour", "Harbour", balance(10_000, 9_000), None)
    both = replace(data, districts=(*data.districts, other))
    assert both.before is None
    assert headline(both).endswith("was lost.")


def test_the_deck_names_the_largest_loss_and_the_largest_leak():
    leaks = (
        Leak("Valley", LAST_DAY, LAST_DAY, 1, 900.0, 0.9, True),
        Leak("Harbour", LAST_DAY, LAST_DAY, 1, 1200.0, 0.9, True),
        Leak("Hillside", LAST_DAY, LAST_DAY, 1, 9000.0, 0.9, False),
    )
    sentences = deck(replace(with_shares(12, None), leaks=leaks)).replace("\xa0", " ")
    assert (
        sentences
        == "Valley lost 1.2 m³ a day. Two leaks are running; the largest, in Harbour, at about 1,200 litres an hour."
    )
    assert deck(replace(EMPTY, leaks=())) == "No leak is known to be running."


def test_unusual_hours_are_listed_newest_first(page: str):
    text = Page(page).text.replace("\xa0", " ")
    assert "Five times in the last four weeks" in text
    rows = unusual(sample())
    assert [row["district"] for row in rows] == ["Valley", "Riverbend", "Lakeview", "Hillside", "Old Town"]
    assert [row["kind"] for row in rows] == ["bad", "bad", "over", "over", "over"]
    low = {name: cell.replace("\xa0", " ") for name, cell in rows[2].items()}
    assert (low["what"], low["when"]) == ("Low inflow", "19 Nov 09:00 to 14:00")
    assert (low["hours"], low["litres"], low["usual"]) == ("5", "640", "7,912")
    assert rows[0]["when"].replace("\xa0", " ") == "since 16 Nov 22:00"


def test_the_newest_of_many_unusual_hours_are_shown():
    episodes = sample().unusual
    assert episodes
    episode = episodes[0]
    many = tuple(replace(episode, end=episode.end - timedelta(hours=n), hours=n) for n in range(MAX_EPISODES + 3))
    rows = unusual(replace(EMPTY, unusual=many))
    assert [row["hours"] for row in rows] == [str(n) for n in range(MAX_EPISODES)]
    assert "No hour of the last four weeks was far from usual" in Page(render(replace(EMPTY, unusual=()))).text


def test_leakage_is_limited_and_needs_a_night_of_every_district():
    data = sample()
    table = {row["name"].split(",")[0].split(":")[0]: row["share"] for row in balance_rows(data)}
    assert list(table) == ["System input", "Metered consumption", "Water losses", "Leakage", "Other"]
    flood = tuple(
        replace(district, nights=tuple(replace(n, loss_lph=1e9) for n in district.nights))
        for district in data.districts
    )
    rows = balance_rows(replace(data, districts=flood))
    assert rows[2]["volume"] == rows[3]["volume"]
    blind = replace(data, districts=(replace(data.districts[0], nights=()), *data.districts[1:]))
    assert blind.night_loss is None
    assert len(balance_rows(blind)) == 3


def test_warnings_are_below_the_headline():
    data = sample()
    assert data.quality
    assert warnings(data) == []
    unbalanced = replace(data, quality=replace(data.quality, clean=1, suites=(Suite("volume", False, NOW, 2, ("a",)),)))
    texts = " ".join(warnings(replace(unbalanced, period_ended=False)))
    for words in ("day is not over", "do not balance", "(volume)"):
        assert words in texts


def test_incomplete_days_and_nights_are_marked(page: str):
    text = Page(page).text.replace("\xa0", " ")
    assert "pale: hours are missing" in text
    assert re.search(r"16 November[^*]*? \*", text), "a night with missing hours has an asterisk"
    assert re.search(r"22 November 2026\s*[\d.]+ m³\s*[\d.]+ m³\s*[\d.]+ m³\s*[\d.]+%\s*54%", text), "13 of 24 hours"


def test_a_drawing_keeps_shapes_and_text_and_nothing_else():
    source = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        'width="9" onload="alert(1)">'
        '<script>alert(2)</script><foreignObject/><style>*{}</style><image xlink:href="https://example.org/a.png"/>'
        '<a xlink:href="javascript:alert(3)"><text>link</text></a>'
        '<g class="x" style="fill:url(#a)"><path d="M0.123,4.987h2" fill="url(https://example.org/)" '
        'stroke="var(--ink)"/>'
        '<text fill="#17212b" onclick="alert(4)">a &lt;b&gt;</text></g></svg>'
    )
    cleaned = str(clean_svg(source, "name", "Title <i>", "Description"))
    assert cleaned == (
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="name-title" aria-describedby="name-desc">'
        '<title id="name-title">Title &lt;i&gt;</title><desc id="name-desc">Description</desc>'
        '<g><path d="M0.1,5h2" stroke="var(--ink)" /><text fill="#17212b">a &lt;b&gt;</text></g></svg>'
    )


def test_numbers_have_units_and_no_negative_zero():
    assert (number(1234567.4), number(-1234.5, 1), number(-0.04, 1), number(None)) == (
        "1,234,567",
        "\N{MINUS SIGN}1,234.5",
        "0.0",
        NONE,
    )
    assert (cubic_metres(1_234_400), cubic_metres(43_210), percent(0.1234)) == ("1,234\xa0m³", "43.2\xa0m³", "12.3%")
    assert (percent(0.0004), percent(0.0), percent(0.004, 0), percent(None)) == ("<0.1%", "0.0%", "<1%", NONE)
    assert (change(5, 3), change(3, 5), change(3.01, 3), change(3, None)) == ("+2", "\N{MINUS SIGN}2", "0", NONE)
    assert period(date(2026, 10, 30), date(2026, 11, 5)).replace("\xa0", " ") == "30 October to 5 November 2026"
    assert moment(datetime(2026, 7, 1, 6, 30, tzinfo=UTC), "America/Los_Angeles").replace("\xa0", " ") == (
        "30 June 2026, 23:30 PDT"
    )


def test_a_quality_without_readings_makes_a_page():
    assert NONE in render(replace(EMPTY, quality=Quality(NOW, 0, 0, 0, 0)))
