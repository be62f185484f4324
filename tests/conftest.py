"""Fixtures for all tests: real services, started once per session and ended with it, also if the session is killed."""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

# Before Airflow is imported: it reads these variables once, and would write into the user's home.
_airflow_home = tempfile.TemporaryDirectory(prefix="airflow-home-")
if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker inherits the variable from pytest's main process: two workers would write one airflow.cfg concurrently.
    os.environ["AIRFLOW_HOME"] = _airflow_home.name
os.environ.setdefault("AIRFLOW_HOME", _airflow_home.name)
os.environ.setdefault("AIRFLOW__CORE__DAGS_FOLDER", str(PROJECT / "dags"))
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")

if find_spec("hypothesis") is not None:
    from hypothesis import settings

    # On a busy machine, the duration of an example says nothing about the code.
    settings.register_profile("without_deadline", deadline=None)
    settings.load_profile("without_deadline")


def start_stack(folder: Path, services: tuple[str, ...], **options):
    """A running Stack that is removed with this process even if it is killed with -9."""
    # Imported here: in the Astro image there is no stack, and the other tests must run there.
    pytest.importorskip("supervisor", reason="the local stack's packages are not installed here")
    from stack import Stack

    folder.mkdir(parents=True, exist_ok=True)
    subprocess.Popen(
        [sys.executable, "-m", "stack.watch", str(os.getpid()), str(folder)], cwd=PROJECT, start_new_session=True
    )
    stack = Stack(folder, services=services, **options)
    stack.up()
    return stack


# A whole stack takes a minute to start, Kafka Connect half a minute, and the tests of tests/scaffold run all tests of a
# copy of the project: one worker of pytest-xdist runs all tests of such a folder. The other tests are distributed by
# file.
ONE_WORKER_EACH = ("tests/e2e", "tests/integration/connect", "tests/scaffold")
# The first two workers wait much of their time. A further worker gets only their idle processor time: it runs tests
# without services first, and no tests that need a whole stack.
FULL_WORKERS = 2
WITHOUT_SERVICES = ("tests/unit", "tests/dags")


def worker_group(nodeid: str) -> str:
    """The group of a test; one worker runs all tests of a group."""
    file = nodeid.partition("::")[0]
    return next((folder for folder in ONE_WORKER_EACH if file.startswith(f"{folder}/")), file)


def is_spare(worker: str) -> bool:
    """Whether this worker ("gw0", "gw1", ...) gets only the idle processor time of the others."""
    return int(worker.removeprefix("gw")) >= FULL_WORKERS


def next_group(groups: Iterable[str], worker: str) -> str | None:
    """The waiting group of tests that a worker runs next; None if it must not run any of them."""
    waiting = list(groups)
    quick = [group for group in waiting if group.startswith(WITHOUT_SERVICES)]
    others = [group for group in waiting if group not in quick]
    if is_spare(worker):
        return next((group for group in (*quick, *others) if group not in ONE_WORKER_EACH), None)
    return next(iter((*others, *quick)), None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return worker_group(nodeid)

        def _assign_work_unit(self, node) -> None:
            group = next_group(self.workqueue, node.gateway.id)
            if group is None:
                node.shutdown()
                return
            self.workqueue.move_to_end(group, last=False)
            super()._assign_work_unit(node)

    return ByGroup(config, log)


def pytest_configure() -> None:
    if is_spare(os.environ.get("PYTEST_XDIST_WORKER", "gw0")):
        os.nice(10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers, start the longest group first: otherwise one worker would run it alone at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: (*ONE_WORKER_EACH, group := worker_group(item.nodeid)).index(group))


@pytest.fixture(scope="session")
def services(tmp_path_factory):
    """A Stack with PostgreSQL, Kafka and the object store; the variables AIRFLOW_CONN_... point at it."""
    stack = start_stack(tmp_path_factory.mktemp("services"), ("postgres", "kafka", "objectstore"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.environment().items():
            if name.startswith("AIRFLOW_CONN_"):
                patch.setenv(name, value)
        yield stack
    stack.remove()


@pytest.fixture(scope="session")
def landing_services(services):
    """The same, with the variables of the object store and of the landing tables' catalog."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"):
            patch.setenv(name, services.environment()[name])
        yield services


@pytest.fixture(scope="session")
def s3_services(tmp_path_factory):
    """A Stack with an S3 server alone; AIRFLOW_CONN_AWS_DEFAULT points at it."""
    stack = start_stack(tmp_path_factory.mktemp("s3"), ("objectstore",), store="s3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", stack.environment()["AIRFLOW_CONN_AWS_DEFAULT"])
        yield stack
    stack.remove()


@pytest.fixture(scope="session")
def connect_services(landing_services, tmp_path_factory):
    """A Stack with Kafka Connect alone, on the broker of `services`; AIRFLOW_CONN_KAFKA_CONNECT points at it."""
    password = "LANDING_CATALOG_PASSWORD"
    with pytest.MonkeyPatch.context() as patch:
        broker = landing_services.endpoints()["kafka"]["bootstrap_servers"]
        patch.setenv("KAFKA_BOOTSTRAP_SERVERS", broker)
        # Variables that the connectors' configurations refer to.
        secrets = {password: landing_services.environment()[password]}
        stack = start_stack(tmp_path_factory.mktemp("connect"), ("kafka", "connect"), environment=secrets)
        patch.delenv("KAFKA_BOOTSTRAP_SERVERS")
        patch.setenv("AIRFLOW_CONN_KAFKA_CONNECT", stack.environment()["AIRFLOW_CONN_KAFKA_CONNECT"])
        yield stack
    stack.remove()


@pytest.fixture(scope="session")
def schema_registry(tmp_path_factory):
    """A Stack with the schema registry on a database of its own; AIRFLOW_CONN_SCHEMA_REGISTRY points at it."""
    stack = start_stack(tmp_path_factory.mktemp("registry"), ("postgres", "registry"))
    with pytest.MonkeyPatch.context() as patch:
        name = "AIRFLOW_CONN_SCHEMA_REGISTRY"
        patch.setenv(name, stack.environment()[name])
        yield stack
    stack.remove()


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """Restore the level of the root logger, which commands change in this process: the next test would miss lines."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
