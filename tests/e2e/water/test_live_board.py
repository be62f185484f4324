"""The live board in a real browser: the tests send messages to Kafka and read what the page shows."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from confluent_kafka import Producer
from playwright.sync_api import Browser, BrowserContext, Page, Route, StorageState, expect

from include.streams.contracts import Contract, Topic
from include.streams.pages.app import HEADERS
from include.water.sites import DISTRICTS, SITES
from include.water.topics import LEAKS_DETECTED, SEISMIC_EVENTS
from tests.e2e.water.test_event_lane import leak, quake

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

BOARD = "/pages/live-board/"
DAGS = ("raise_alerts", "deliver_outbox", "refresh_live_board")
# Time for a message: claim, alert, outbox, alerts.raised, stock trigger, Dag run, poll.
SECONDS = 60_000
# All errors of the browser, including violations of the policy.
VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""
# Texts with too little contrast to their background, by WCAG's formula: large text needs 3, other text 4.5.
CONTRAST = """
() => {
  const parse = (color) => (color.match(/[\\d.]+/g) ?? []).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3).reduce((sum, value, n) => {
    const part = value / 255;
    return sum + [0.2126, 0.7152, 0.0722][n] * (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  }, 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = parse(getComputedStyle(one).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("svg, .hidden-text, .fresh")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [luminance(parse(style.color)), luminance(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const pixels = parseFloat(style.fontSize);
    const large = pixels >= 24 || (pixels >= 18.7 && Number(style.fontWeight) >= 700);
    if (ratio >= (large ? 3 : 4.5)) continue;
    found.push(`${element.className || element.tagName}: ${ratio.toFixed(2)} ${element.textContent}`);
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def airflow(whole_stack) -> dict[str, str]:
    return whole_stack.endpoints()["airflow"]


@pytest.fixture(scope="module")
def send(whole_stack) -> Callable[[Topic, Contract], None]:
    producer = Producer({**whole_stack.endpoints()["kafka"]["client_config"], "log_level": 2})

    def send(topic: Topic, event: Contract) -> None:
        key, value = topic.serialize(event)
        producer.produce(topic.name, key=key, value=value)
        assert producer.flush(30) == 0

    return send


@pytest.fixture
def context(browser: Browser, airflow) -> Iterator[BrowserContext]:
    """A page without a login."""
    with new_context(browser, airflow) as context:
        yield context


@pytest.fixture(scope="module")
def logged_in(browser: Browser, airflow) -> StorageState:
    """A browser's stored state after a login, with which each test begins: a login takes seconds."""
    with new_context(browser, airflow) as context:
        log_in(context.new_page(), airflow)
        return context.storage_state()


def new_context(browser: Browser, airflow, logged_in: StorageState | None = None) -> BrowserContext:
    context = browser.new_context(
        base_url=airflow["url"], viewport={"width": 1920, "height": 1080}, storage_state=logged_in
    )
    context.add_init_script(VIOLATIONS)
    return context


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def page(browser: Browser, airflow, logged_in: StorageState, complaints: list[str]) -> Iterator[Page]:
    """The board of a logged-in user; the browser must not have logged an error at the end."""
    with new_context(browser, airflow, logged_in) as context:
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.goto(BOARD)
        expect(page.locator("#connection")).to_have_text("Live")
        yield page
        assert complaints == []
        for frame in page.frames:
            assert frame.evaluate("window.violations") == []


def log_in(page: Page, airflow: dict[str, str]) -> None:
    """Log in like a person: the board redirects to the login page, which redirects back to the board."""
    page.goto(BOARD)
    page.fill("input[name=username]", airflow["username"])
    page.fill("input[name=password]", airflow["password"])
    page.click("button[type=submit]")
    page.wait_for_url(f"**{BOARD}")


@pytest.fixture
def decide(whole_stack) -> Iterator[Callable[..., None]]:
    """A function that writes a decision awaiting approval; it is deleted at the end, so that no Dag acts on it."""
    decision_ids: list[str] = []
    with psycopg.connect(whole_stack.endpoints()["databases"]["operations_db"], autocommit=True) as database:

        def decide(summary: str, **changes: Any) -> None:
            name = uuid.uuid4().hex
            row = {
                "decision_id": name,
                "request_id": name,
                "summary": summary,
                **dict.fromkeys(("customer_id", "proposal_hash", "policy_version", "source_topic"), "test"),
                **dict.fromkeys(("evidence", "tool_calls"), "[]"),
                **dict.fromkeys(("usage", "explanation"), "{}"),
                **dict.fromkeys(("source_partition", "source_offset"), 0),
                **{"severity": "critical", "severity_rank": 2, "category": "burst_pipe", "engine": "offline"},
                **{"action": "close_valve", "target_kind": "district", "target_id": "harbour", "risk": "high"},
                **{"state": "awaiting_approval", "deadline_at": "2100-01-01"},
                **changes,
            }
            names, places = ", ".join(row), ", ".join(["%s"] * len(row))
            statement = f"insert into decisions ({names}) values ({places})"
            database.execute(statement, list(row.values()))  # type: ignore[arg-type]
            decision_ids.append(name)

        yield decide
        database.execute("delete from decisions where decision_id = any(%s)", [decision_ids])


def test_without_a_login_nothing_is_shown(airflow):
    for name in ("", "state", "board.js", "board.css", "base.css", "icon.svg"):
        answer = httpx.get(f"{airflow['url']}{BOARD}{name}", timeout=30)
        assert answer.status_code == 401, name
        assert answer.json() == {"detail": "Not authenticated"}
    for name in ("../page.py", "%2e%2e/page.py", "..%2fpage.py", "docs", "openapi.json"):
        answer = httpx.get(f"{airflow['url']}{BOARD}{name}", timeout=30)
        assert "read_board" not in answer.text, name
        assert "openapi" not in answer.text, name


def test_a_visitor_is_sent_to_the_login_page_and_back(context: BrowserContext, airflow):
    page = context.new_page()
    page.goto(BOARD)
    assert "/auth/login" in page.url
    assert "Live board" not in page.content()
    log_in(page, airflow)
    expect(page.locator("h1")).to_have_text("Live board")


def test_an_open_page_shows_nothing_after_a_logout(page: Page, complaints: list[str]):
    expect(page.locator(".tile").first).to_be_visible()
    page.context.clear_cookies()
    page.wait_for_url("**/auth/login**")
    complaints.clear()  # that the answer was 401


def test_every_response_has_the_strict_policy(page: Page):
    for name in ("", "state", "board.js", "nothing.js"):
        headers = page.request.get(f"{BOARD}{name}").headers
        for header, value in HEADERS.items():
            assert headers[header.lower()] == value, (name, header)
    policy = page.request.get(BOARD).headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_browser_itself_refuses_markup_and_foreign_sources(page: Page, complaints: list[str]):
    attempt = "() => { try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return String(error); } }"
    assert "TrustedHTML" in (page.evaluate(attempt) or "taken")
    assert page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"
    page.goto(BOARD)
    complaints.clear()  # the browser's errors about these two attempts are expected


def test_a_new_alert_appears_on_its_tile_without_a_reload(page: Page, send):
    page.evaluate("window.sameDocument = true")
    litres = random.randrange(20_000, 10_000_000)
    number = f"{litres:,}"
    expect(page.locator("#tile-valley")).not_to_contain_text(number)
    send(LEAKS_DETECTED, leak("valley", litres_per_hour=float(litres)))
    item = page.locator("#tile-valley .alerts li", has_text=f"Leak of about {number} litres an hour in Valley")
    expect(item).to_be_visible(timeout=SECONDS)
    expect(item).to_contain_text("Critical")
    expect(item).to_contain_text(re.compile(r"\d+ s ago"))
    expect(item.locator(".new")).to_be_visible()
    expect(page.locator("#map a[data-tile=valley]")).to_have_attribute(
        "aria-label", re.compile("Valley: [0-9]+ critical")
    )
    expect(page.locator("#announcement")).to_contain_text(f"Critical in Valley: Leak of about {number}")
    assert page.evaluate("window.sameDocument") is True


def test_markup_in_a_message_is_shown_as_text(page: Page, send, decide):
    markup = "<img src=x onerror=alert(1)><b>x"
    send(SEISMIC_EVENTS, quake().model_copy(update={"kind": markup}))
    site = next(iter(SITES.values()))
    tile = page.locator(f"#tile-{site.district_id}")
    expect(tile).to_contain_text(f"M 6.0 {markup}, 0 km from", timeout=SECONDS)
    summary = '"><script>alert(2)</script><a href="javascript:alert(3)">x</a>'
    decide(summary)
    expect(page.locator("#awaiting")).to_contain_text(summary)
    assert page.locator("main img, main script, main a[href^=javascript]").count() == 0
    assert page.locator("main b", has_text=re.compile("^x$")).count() == 0


def test_ages_are_updated_without_the_server(page: Page, send):
    litres = random.randrange(20_000, 10_000_000)
    send(LEAKS_DETECTED, leak("riverbend", litres_per_hour=float(litres)))
    age = page.locator("#tile-riverbend li", has_text=f"{litres:,}").locator("time").first
    expect(age).to_be_visible(timeout=SECONDS)
    # The server is not asked any more: only the browser can have updated the age.
    page.route("**/state", lambda route: None)
    before = age.text_content()
    expect(age).not_to_have_text(before or "")


def test_a_lost_connection_is_shown_and_the_board_recovers(page: Page, complaints: list[str]):
    def lose(route: Route) -> None:
        route.abort()

    page.route("**/state", lose)
    expect(page.locator("#notice")).to_contain_text("No connection to Airflow. The board shows what was known at")
    expect(page.locator("#connection")).to_have_text("Connection lost")
    expect(page.locator(".tile")).to_have_count(len(DISTRICTS))
    page.unroute("**/state", lose)
    expect(page.locator("#connection")).to_have_text("Live", timeout=20_000)
    expect(page.locator("#notice")).to_be_hidden()
    complaints.clear()  # the browser's errors about the failed requests


def test_the_server_sends_only_a_changed_board(page: Page):
    first = page.request.get(f"{BOARD}state")
    again = page.request.get(f"{BOARD}state", headers={"If-None-Match": first.headers["etag"]})
    assert (first.status, again.status) == (200, 304)
    assert again.body() == b""


def test_a_waiting_proposal_links_to_its_page_in_airflow(page: Page, decide, complaints):
    decide("A burst main.", approval_run_id="run/one +1")
    page.goto("/plugin/live-board")
    item = page.frame_locator("iframe").locator("#awaiting li", has_text="A burst main.")
    expect(item).to_contain_text("Close valve: Harbour")
    expect(item).to_contain_text("rejected in")
    item.get_by_role("link", name="Review").click()
    page.wait_for_url("**/dags/execute_decisions/runs/run%2Fone%20%2B1/required_actions")
    page.goto(BOARD)
    complaints.clear()  # Airflow's own page requested a run that does not exist


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_board_has_airflows_theme_with_enough_contrast(page: Page, theme: str, decide):
    decide("Contrast.")
    page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", theme)
    expect(page.locator("#awaiting")).to_contain_text("Contrast.")
    assert page.evaluate(CONTRAST) == []


def test_the_keyboard_leads_from_the_map_to_a_tile(page: Page):
    link = page.locator("#map a[data-tile=southfield]")
    link.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#tile-southfield")).to_be_focused()


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1366, 768), (390, 844)])
def test_nothing_is_cut_off_sideways(page: Page, width: int, height: int, decide):
    decide("Withoutaspace" * 20)
    page.set_viewport_size({"width": width, "height": height})
    expect(page.locator("#awaiting")).to_contain_text("Withoutaspace")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
