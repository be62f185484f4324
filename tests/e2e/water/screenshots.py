"""Write docs/screenshots/live-board-{light,dark}.png: `python -m tests.e2e.water.screenshots`.

It starts a new stack and the simulators for a minute, and shows the board to a logged-in user.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
from playwright.sync_api import expect, sync_playwright

from stack import Stack

PROJECT = Path(__file__).resolve().parents[3]
FOLDER = PROJECT / "docs" / "screenshots"
SIMULATORS = "include.water.simulators"
# So few alerts that a tile can list them, and one request for each possible outcome of triage.
SECONDS = 60
FRESH_SECONDS = 60
RATES = ("leaks.detected=0.6", "service.requests=0.3", "meter.readings=1")
# Until every tile shows its alerts and something waits for approval.
SETTLED = """
select (select count(*) from decisions) > 5
   and (select count(*) from decisions where state = 'awaiting_approval') > 0
   and (select max(updated_at) from alerts) < (select max(refreshed_at) from board_tiles)
"""
TIMEOUT_SECONDS = 600

log = logging.getLogger(__name__)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder) / "stack")
        try:
            stack.up()
            send(stack, Path(folder) / "report.json")
            wait(stack)
            # Only the last alerts are still marked as new.
            time.sleep(FRESH_SECONDS)
            send(stack, Path(folder) / "report.json", seconds=4)
            wait(stack)
            take(stack.endpoints()["airflow"])
        finally:
            stack.remove()
    return 0


def send(stack: Stack, report: Path, seconds: int = SECONDS) -> None:
    rates = [part for rate in RATES for part in ("--rate", rate)]
    subprocess.run(
        [sys.executable, "-m", SIMULATORS, "run", "--for", str(seconds), "--report", str(report), *rates],
        cwd=PROJECT,
        env={**os.environ, **stack.environment()},
        check=True,
    )


def wait(stack: Stack) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    with psycopg.connect(stack.endpoints()["databases"]["operations_db"], autocommit=True) as connection:
        while not (connection.execute(SETTLED).fetchone() or (False,))[0]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no decisions, or tiles that are behind, after {TIMEOUT_SECONDS} s")
            time.sleep(2)


def take(airflow: dict[str, str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        # The size of a wall screen; three quarters of the pixels are enough for a document.
        page = browser.new_page(
            viewport={"width": 1920, "height": 1080}, device_scale_factor=0.75, reduced_motion="reduce"
        )
        page.goto(f"{airflow['url']}/pages/live-board/")
        page.fill("input[name=username]", airflow["username"])
        page.fill("input[name=password]", airflow["password"])
        page.click("button[type=submit]")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            expect(page.locator("html")).to_have_attribute("data-theme", scheme)
            expect(page.locator("#connection")).to_have_text("Live", timeout=30_000)
            path = FOLDER / f"live-board-{scheme}.png"
            page.screenshot(path=path)
            log.info("%s: %d kB", path.relative_to(PROJECT), path.stat().st_size // 1000)
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
