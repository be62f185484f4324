"""Write docs/screenshots/executive-report-*.png from sample data: `python -m tests.e2e.water.report_screenshots`."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from include.water.dashboards.report.render import render
from tests.unit.water.report_sample import sample

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "screenshots"
# Name -> width in pixels, colours, medium. A4 without its margins is 180 mm, 680 pixels.
SHOTS = {
    "light": (1100, "light", "screen"),
    "dark": (1100, "dark", "screen"),
    "phone": (390, "light", "screen"),
    "print": (680, "light", "print"),
}

log = logging.getLogger(__name__)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        source = Path(folder) / "report.html"
        source.write_text(render(sample()))
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        for name, (width, scheme, medium) in SHOTS.items():
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme, media=medium)  # type: ignore[arg-type]
            page.goto(source.as_uri())
            path = FOLDER / f"executive-report-{name}.png"
            page.screenshot(path=path, full_page=True)
            log.info("%s: %d kB", path.name, path.stat().st_size // 1000)
            page.close()
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
