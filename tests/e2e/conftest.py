"""A real browser for the tests of pages: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.conftest import PROJECT, start_stack
from tests.e2e.airflow import Airflow

SHOP_DAGS = Path(__file__).with_name("dags")
REMEDY = "no chromium: run `make browser` as root on Debian, or install it with your package manager"


def must_have_browser() -> bool:
    """Skip without a browser, except where `make browser` installs one: there its absence is an error."""
    debian_root = Path("/etc/debian_version").exists() and os.geteuid() == 0
    return os.environ.get("CI_BROWSER") == "required" or debian_root


# For a module, not for the session: while Playwright runs, it occupies the thread's event loop, and asyncio.run in a
# test of another module would fail.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        if must_have_browser():
            pytest.fail(REMEDY)
        pytest.skip(REMEDY)
    with sync_playwright() as playwright:
        # Root has no user namespace to put the sandbox into.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


def bundles(**folders: Path | None) -> Iterator[dict[str, Any]]:
    """Airflow's bundles of Dag files; None for the folder of [core] dags_folder."""
    for name, folder in folders.items():
        arguments = {} if folder is None else {"path": str(folder)}
        yield {"name": name, "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle", "kwargs": arguments}


# For the package, not for the session: a running Airflow would slow down all later tests.
@pytest.fixture(scope="package")
def whole_stack(tmp_path_factory):
    """A Stack with all services, including Airflow. It changes no environment variable: use its `environment()`."""
    services = ("postgres", "kafka", "objectstore", "connect", "feeds", "airflow")
    # The tests measure nothing. Three looks a second instead of ten: the scheduler would take a third of a core. And of
    # the Dags, which would take most of the rest, only those at work that a module is about.
    settings = {
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([*bundles(project=None, shop=SHOP_DAGS)]),
    }
    stack = start_stack(tmp_path_factory.mktemp("whole_stack"), services, environment=settings)
    subprocess.run(
        [sys.executable, "-m", "tests.e2e.shop"], cwd=PROJECT, env={**os.environ, **stack.environment()}, check=True
    )
    yield stack
    stack.remove()


@pytest.fixture(scope="module", autouse=True)
def dags_at_work(whole_stack, request: pytest.FixtureRequest) -> Iterator[Airflow]:
    """Airflow, with the Dags of the module's DAGS unpaused during its tests."""
    airflow = Airflow(**whole_stack.endpoints()["airflow"])
    dags = getattr(request.module, "DAGS", ())
    airflow.start(*dags)
    yield airflow
    for dag in dags:
        airflow.pause(dag, True)
    airflow.close()


@pytest.fixture(scope="module")
def airflow(dags_at_work: Airflow) -> Airflow:
    return dags_at_work
