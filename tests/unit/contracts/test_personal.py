"""Fields that a contract marks as personal are masked, also in messages that break the contract."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from include.streams import Contract, Personal, Topic
from include.streams.contracts.personal import MASK, has_personal_fields, masked, public_names


class Visit(Contract):
    version: Literal[1]
    number: str
    name: Annotated[str, Personal()]
    street: Annotated[str, Field(max_length=50), Personal()] | None

    @property
    def event_id(self) -> str:
        return self.number


class Plain(Contract):
    version: Literal[1]
    number: str

    @property
    def event_id(self) -> str:
        return self.number


VISITS = Topic("visits", Visit, key="number", partitions=1, retention=timedelta(days=1))
PLAIN = Topic("plain", Plain, key="number", partitions=1, retention=timedelta(days=1))


def test_marked_fields_are_found_also_in_an_optional_type():
    assert has_personal_fields(VISITS)
    assert not has_personal_fields(PLAIN)
    assert public_names(VISITS) == {"version", "number"}


def test_only_values_of_known_public_fields_are_left():
    letter = {"version": 1, "number": "A", "name": "Ann", "street": None, "nmae": "Ann", "more": {"name": ["Ann"]}}
    assert masked(VISITS, letter) == {
        "version": 1,
        "number": "A",
        "name": MASK,
        "street": None,
        "nmae": MASK,
        "more": {"name": [MASK]},
    }


def test_a_personal_value_as_the_name_of_a_member_is_masked():
    assert list(masked(VISITS, {"Ann lives at 12 Long Road, and asks for a very quick visit": 1})) == [MASK]


def test_a_mark_changes_no_schema():
    assert Visit.model_json_schema()["properties"]["name"] == {"title": "Name", "type": "string"}
