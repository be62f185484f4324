"""The only private attribute of pydantic that is read."""

import pytest

from include.streams.compat.models import core_schema
from include.streams.contracts import Contract


def test_a_contract_has_a_core_schema():
    assert core_schema(Contract)["type"] in ("model", "definitions")


def test_a_class_without_a_core_schema_is_refused_by_name():
    with pytest.raises(TypeError, match="int has no core schema"):
        core_schema(int)
