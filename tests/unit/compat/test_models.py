"""The one private part of pydantic that is read."""

import pytest

from include.streams.compat.models import core_schema
from include.streams.contracts import Contract


def test_a_contract_has_the_schema_that_pydantic_reads_with():
    assert core_schema(Contract)["type"] in ("model", "definitions")


def test_a_class_without_such_a_schema_is_refused_by_name():
    with pytest.raises(TypeError, match="int has no core schema"):
        core_schema(int)
