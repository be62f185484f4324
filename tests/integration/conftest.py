"""Real services that several folders of tests use, beside those in tests/conftest.py."""

import pytest


@pytest.fixture(scope="session")
def object_store(landing_services):
    """A Stack with the object store; the environment points at it. One for all tests: its clients are cached."""
    return landing_services
