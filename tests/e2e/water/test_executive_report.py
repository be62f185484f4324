"""The executive report in a real browser and a real Airflow: it needs a login, and runs no foreign code."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, StorageState, expect

from include.streams.lake.buckets import Bucket, bucket
from include.streams.pages.app import HEADERS
from include.water.dashboards.report.publish import FOLDER, latest, publish
from include.water.dashboards.report.render import STYLE, render, style_source
from include.water.flows.definition import TIME_ZONE
from tests.e2e.airflow import Airflow, wait_for
from tests.e2e.water.test_live_board import CONTRAST
from tests.unit.water.report_sample import sample

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

REPORT = "/pages/executive-report/"
DAG = "publish_dashboard"
DAGS = (DAG,)
HOSTILE = "</h2><script>document.title='taken'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def airflow(whole_stack) -> dict[str, str]:
    return whole_stack.endpoints()["airflow"]


@pytest.fixture(scope="module")
def objects(whole_stack) -> Iterator[Bucket]:
    """The bucket that Airflow reads, without reports of the stack's own Dags."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", "STORAGE_EMULATOR_HOST"):
            patch.setenv(name, whole_stack.environment()[name])
        yield bucket("artifacts")


@pytest.fixture(scope="module")
def hostile() -> tuple[str, datetime]:
    """(HTML, time) of a report with markup in its names; rendered once, because it takes seconds."""
    data = sample()
    first, *others = data.districts
    data = replace(data, computed_at=datetime.now(UTC), districts=(replace(first, name=HOSTILE), *others))
    return render(data), data.computed_at


@pytest.fixture
def shown(objects: Bucket, hostile: tuple[str, datetime]) -> Iterator[str]:
    """The path of that report."""
    yield publish(objects, *hostile, TIME_ZONE)
    for entry in objects.list(f"{FOLDER}/"):
        objects.delete(entry.path)


@pytest.fixture(scope="module")
def logged_in(browser: Browser, airflow) -> StorageState:
    """A browser's stored state after a login, with which each test begins."""
    with browser.new_context(base_url=airflow["url"]) as context:
        page = context.new_page()
        page.goto(REPORT)
        assert "/auth/login" in page.url
        page.fill("input[name=username]", airflow["username"])
        page.fill("input[name=password]", airflow["password"])
        page.click("button[type=submit]")
        page.wait_for_url(f"**{REPORT}")
        return context.storage_state()


@pytest.fixture
def context(browser: Browser, airflow, logged_in: StorageState) -> Iterator[BrowserContext]:
    """A page of a logged-in user."""
    with browser.new_context(
        base_url=airflow["url"], viewport={"width": 1100, "height": 900}, storage_state=logged_in
    ) as context:
        yield context


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def page(context: BrowserContext, shown: str, asked: list[str], complaints: list[str]) -> Iterator[Page]:
    """The page of the report; the browser must not have logged an error at the end."""
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(REPORT)
    yield page
    assert complaints == []


def test_without_a_login_nothing_is_shown(airflow, shown: str):
    for name in ("", "icon.svg", "latest.json", "docs", "openapi.json"):
        answer = httpx.get(f"{airflow['url']}{REPORT}{name}", timeout=60)
        assert answer.status_code == 401, name
        assert answer.json() == {"detail": "Not authenticated"}


def test_the_report_shows_losses_in_headings_tables_and_drawings(page: Page, complaints: list[str]):
    expect(page.locator("h1")).to_contain_text("of the water fed into the network")
    assert page.locator("h2").all_text_contents() == [
        "Water balance",
        "Losses by district",
        "Leaks",
        "Unusual flow",
        "Data quality",
        "Leak model in use",
    ]
    drawings = page.locator("svg[role=img]:visible")
    assert drawings.count() == 3
    for drawing in drawings.all():
        box = drawing.bounding_box()
        assert box
        assert box["width"] > 800
    expect(page.get_by_role("img", name="Losses by district", exact=True)).to_be_visible()
    page.get_by_text("Figures of each day").click()
    expect(page.get_by_role("rowheader", name="21 November 2026", exact=True)).to_be_visible()
    # The page has no script. The refused scripts are those with which Playwright finds elements.
    complaints[:] = [text for text in complaints if not text.startswith("Blocked script execution")]


def test_the_page_loads_nothing_else(page: Page, airflow, asked: list[str]):
    page.wait_for_load_state("networkidle")
    assert asked == [f"{airflow['url']}{REPORT}"]


def test_markup_in_a_name_is_shown_as_text(page: Page):
    expect(page.locator("tbody th", has_text=HOSTILE).first).to_be_visible()
    # In a drawing the name is shortened, and is text too.
    expect(page.locator("svg:visible text", has_text="</h2><scr").first).to_be_visible()
    assert page.locator("script, img, iframe, a").count() == 0
    assert page.title().startswith("Water network report")


def test_the_page_has_no_origin_and_a_policy_for_its_style_only(page: Page):
    headers = page.request.get(REPORT).headers
    policy = headers["content-security-policy"]
    assert policy.startswith(f"default-src 'none'; style-src {style_source(STYLE)}; ")
    assert policy.endswith("; frame-ancestors 'self'; sandbox")
    assert "unsafe" not in policy
    for header, value in HEADERS.items():
        if header != "Content-Security-Policy":
            assert headers[header.lower()] == value
    assert page.evaluate("self.origin") == "null"
    icon = page.request.get(f"{REPORT}icon.svg").headers
    assert icon["content-security-policy"] == HEADERS["Content-Security-Policy"]


def test_a_script_in_a_foreign_report_is_not_run(context: BrowserContext, objects: Bucket, shown: str):
    pointer = latest(objects)
    assert pointer
    evil = b"<title>before</title><script>document.title='taken'</script><h1 style='color:red'>x</h1>"
    objects.write(pointer.path, evil, "text/html")
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(REPORT)
    expect(page.locator("h1")).to_have_text("x")
    assert page.title() == "before"
    assert any("Blocked script execution" in text for text in complaints)


def test_airflow_shows_it_in_its_own_frame(context: BrowserContext, shown: str):
    page = context.new_page()
    page.goto("/plugin/executive-report")
    expect(page.frame_locator("iframe").locator("h1")).to_contain_text("of the water fed into the network")


def test_without_a_report_the_page_says_so(context: BrowserContext, objects: Bucket):
    for entry in objects.list(f"{FOLDER}/"):
        objects.delete(entry.path)
    page = context.new_page()
    page.goto(REPORT)
    expect(page.locator("h1")).to_have_text("There is no report yet.")


def test_a_manual_run_publishes_at_once_and_an_event_run_waits(
    context: BrowserContext, objects: Bucket, dags_at_work: Airflow, shown: str
):
    api, run_id = dags_at_work, f"test-{uuid.uuid4().hex[:8]}"
    api.ask("POST", f"/dags/{DAG}/dagRuns", dag_run_id=run_id, logical_date=None)
    api.wait_for_success(run_id, DAG, seconds=120)
    result = api.ask("GET", f"/dags/{DAG}/dagRuns/{run_id}/taskInstances/publish/xcomEntries/return_value")["value"]
    pointer = latest(objects)
    assert pointer
    assert str(result["path"] if isinstance(result, dict) else json.loads(result)["path"]) == pointer.path != shown
    page = context.new_page()
    page.goto(REPORT)
    expect(page.locator("h1")).to_have_text("No hourly flows have been computed yet.")
    (asset,) = api.ask("GET", "/assets?name_pattern=hourly_flows")["assets"]
    api.ask("POST", "/assets/events", asset_id=asset["id"], extra={})

    def deferred() -> bool:
        runs = api.ask("GET", f"/dags/{DAG}/dagRuns?order_by=-run_after&limit=1")["dag_runs"]
        states = {task["task_id"]: task["state"] for task in api.tasks(runs[0]["dag_run_id"], DAG)}
        return runs[0]["run_type"] == "asset_triggered" and states["wait"] == "deferred"

    wait_for(deferred, 120, "the run for the event waits without a worker")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(page: Page, scheme: str):
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.get_by_text("Figures of each day").click()
    assert page.evaluate(CONTRAST) == []


@pytest.mark.parametrize(("width", "drawn"), [(1600, "wide"), (390, "narrow")])
def test_nothing_is_cut_off_sideways(page: Page, width: int, drawn: str):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator(f".{drawn}:visible").count() == 3
    assert page.locator("svg:visible").count() == 3


def test_on_paper_the_report_is_light_and_has_a_few_pages(page: Page):
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert 2 <= pdf.count(b"/Type /Page\n") <= 5
