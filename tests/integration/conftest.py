"""Real services that several folders of tests use, beside those in tests/conftest.py."""

import pytest

from tests.conftest import start_stack


@pytest.fixture(scope="session")
def object_store(tmp_path_factory):
    """A Stack with the object store; the environment points at it."""
    stack = start_stack(tmp_path_factory.mktemp("object_store"), ("objectstore",))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", "STORAGE_EMULATOR_HOST", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"):
            patch.setenv(name, stack.environment()[name])
        yield stack
    stack.remove()
