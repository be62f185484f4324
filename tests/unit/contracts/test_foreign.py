"""The fields that a foreign contract picks from a message, and the reasons for messages that it refuses."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from include.streams.contracts import (
    At,
    Contract,
    ContractUnion,
    ContractViolation,
    ForeignContract,
    ForeignPart,
    FromHeader,
    NotWanted,
    Reason,
    Topic,
)
from include.streams.contracts.breaking import broken_foreign
from include.streams.contracts.digests import differ, digest
from include.streams.contracts.repairs import Repairs, to_document, to_value
from include.streams.contracts.types import Identifier, Line, UtcTime
from include.streams.kafka.consumers import Consumer
from tests import webhooks
from tests.unit.contracts.orders import OrderV1

Headers = list[tuple[str, bytes | None]]


class Tag(ForeignPart):
    name: Annotated[Line, Field(max_length=9)]


class Build(ForeignContract):
    build: Annotated[Identifier, FromHeader("Build-Id")]
    branch: Annotated[Line, At("source.branch.name"), Field(max_length=20)]
    done_at: Annotated[UtcTime, At("result.done_at")] | None = None
    seconds: Annotated[float | None, At("result.seconds"), Field(ge=0, le=1e6)] = None
    attempt: Annotated[int, Field(ge=1, le=9)]
    tags: Annotated[tuple[Tag, ...], At("meta.tags"), Field(max_length=3)] = ()
    dotted: Annotated[Line, At(("meta", "a.b")), Field(max_length=9)] | None = None

    @property
    def event_id(self) -> str:
        return self.build


def topic(contract: Any = Build, **changes: Any) -> Topic:
    fields = {"key": None, "partitions": 1, "retention": timedelta(days=1), "max_bytes": 2_000, **changes}
    return Topic("builds", contract, **fields)


BUILDS = topic()
HEADERS: Headers = [("Build-Id", b"first"), ("Other", None), ("Build-Id", b"b-1")]
DOCUMENT: dict[str, Any] = {
    "attempt": 1,
    "source": {"branch": {"name": "main", "sha": "x"}, "more": [1, {"name": 2}]},
    "result": {"done_at": "2026-01-02T03:04:05+02:00", "seconds": 5, "log": "x" * 100},
    "meta": {"tags": [{"name": "a", "id": 1}], "a.b": "dot", "a": {"b": 1}},
    "anything": None,
}


def value(**changes: Any) -> bytes:
    return json.dumps({**DOCUMENT, **changes}).encode()


def refusal(message: bytes | None, headers: Headers = HEADERS, of: Topic = BUILDS) -> str:
    with pytest.raises(ContractViolation) as caught:
        of.parse(message, headers)
    return str(caught.value)


def test_fields_are_picked_from_paths_and_headers_and_the_rest_is_ignored():
    assert BUILDS.parse(value(), HEADERS) == Build(
        build="b-1",
        branch="main",
        done_at=datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC),
        seconds=5.0,
        attempt=1,
        tags=(Tag(name="a"),),
        dotted="dot",
    )


@pytest.mark.parametrize("result", [None, {}, {"done_at": None, "seconds": None}])
def test_a_field_whose_path_has_no_value_gets_its_default(result: Any):
    event = BUILDS.parse(value(result=result, meta={}), HEADERS)
    assert event == Build(build="b-1", branch="main", attempt=1)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (None, "tombstone: the message has no value"),
        (b" " * 2_001, "too_large: 2001 bytes, at most 2000"),
        (b"\xff{}", "not_utf8: invalid UTF-8 at byte 0"),
        (b"\0\0\0\0\1{}", "not_json: Expecting value: line 1 column 1 (char 0); begins with a zero byte and four more"),
        (value()[:-1], "not_json: Expecting"),
        (value() + b"x", "not_json: Extra data"),
        (value().replace(b"1", b"NaN", 1), "not_json: a number that JSON does not have"),
        (b"[" * 1_900, "not_json: "),
        (b"[1]", "wrong_type: a JSON array, not an object"),
        (value(attempt="1"), "wrong_type: attempt (int_type)"),
        (value(attempt=10), "out_of_bounds: attempt (less_than_equal)"),
        (value(source={}), "missing_field: source.branch.name (missing)"),
        (value(source=None), "missing_field: source.branch.name (missing)"),
        (value(source={"branch": "main"}), "wrong_type: source.branch (not an object)"),
        (value(source=[{"branch": "main"}]), "wrong_type: source (not an object)"),
        (value(result={"done_at": "yesterday"}), "wrong_type: result.done_at (not_rfc3339)"),
        (value(result={"seconds": 1}).replace(b'"seconds": 1', b'"seconds": 1e999'), "out_of_bounds: result.seconds"),
        (value(meta={"tags": [{"name": 5}]}), "wrong_type: meta.tags.0.name (string_type)"),
        (value(meta={"tags": [{}]}), "missing_field: meta.tags.0.name (missing)"),
        (value(source={"branch": {"name": "\ud800"}}), "not_json: half a surrogate pair in a picked text"),
    ],
)
def test_a_value_that_cannot_be_picked_is_refused_with_its_path(message: bytes | None, expected: str):
    assert refusal(message).startswith(expected)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], "missing_field: header Build-Id (missing)"),
        ([("build-id", b"b")], "missing_field: header Build-Id (missing)"),
        ([("Build-Id", b"b"), ("Build-Id", None)], "missing_field: header Build-Id (missing)"),
        ([("Build-Id", b"\xff")], "not_utf8: header Build-Id: invalid UTF-8 at byte 0"),
        ([("Build-Id", b"a b")], "out_of_bounds: header Build-Id (string_pattern_mismatch)"),
    ],
)
def test_a_header_that_cannot_be_picked_is_refused_with_its_name(headers: Headers, expected: str):
    assert refusal(value(), headers) == expected


def test_a_name_that_occurs_twice_is_refused_only_on_a_picked_path():
    twice = value().replace(b'"sha": "x"', b'"sha": "x", "sha": "y"').replace(b'"log"', b'"log": 1, "log"')
    assert BUILDS.parse(twice, HEADERS) == BUILDS.parse(value(), HEADERS)
    for picked, path in (
        (b'"attempt": 1', "attempt"),
        (b'"branch": {}', "source.branch"),
        (b'"na\\u006de": "other"', "source.branch.name"),
        (b'"id": 2', "meta.tags"),
    ):
        name = picked.partition(b":")[0].replace(b"\\u006d", b"m")
        message = value().replace(name + b":", picked + b", " + name + b":", 1)
        assert refusal(message) == f"not_json: {path}: a name occurs twice in one object"


def test_an_object_with_many_names_and_one_of_them_twice_is_read_once():
    members = {f"n{number}": number for number in range(20_000)}
    message = value(**members)[:-1] + b', "n1": 1}'
    started = time.process_time()
    # A pass over all names for each name takes minutes.
    assert topic(max_bytes=1_000_000).parse(message, HEADERS) == BUILDS.parse(value(), HEADERS)
    assert time.process_time() - started < 10


def test_an_event_of_a_foreign_contract_cannot_be_serialized():
    with pytest.raises(TypeError, match="somebody else defines the messages of topic builds"):
        BUILDS.serialize(BUILDS.parse(value(), HEADERS))


class Deploy(ForeignContract):
    contract_name = "Deployment"
    target: Annotated[Line, At("where"), Field(max_length=9)]

    @property
    def event_id(self) -> str:
        return self.target


BY_HEADER = topic(ContractUnion(by=FromHeader("Kind"), contracts={"build": Build, "deploy": Deploy}))
BY_FIELD = topic(ContractUnion(by=At("meta.kind"), contracts={"build": Build, "deploy": Deploy}))


def test_a_header_or_a_field_chooses_the_contract():
    assert BY_HEADER.parse(b'{"where":"east"}', [("Kind", b"deploy")]) == Deploy(target="east")
    assert BY_FIELD.parse(b'{"meta":{"kind":"deploy"},"where":"east"}') == Deploy(target="east")
    assert isinstance(BY_HEADER.parse(value(), [*HEADERS, ("Kind", b"build")]), Build)


@pytest.mark.parametrize(
    ("of", "message", "headers"),
    [
        (BY_HEADER, value(), [("Kind", b"third")]),
        (BY_HEADER, None, [("Kind", b"third")]),
        (BY_HEADER, b"no json, and " + b"long" * 1_000, [("Kind", b"")]),
        (BY_FIELD, b'{"meta":{"kind":"third"},"x":1,"x":2}', []),
    ],
)
def test_a_message_of_a_type_without_a_contract_is_not_wanted(of: Topic, message: bytes | None, headers: Headers):
    with pytest.raises(NotWanted):
        of.parse(message, headers)


@pytest.mark.parametrize(
    ("of", "message", "headers", "expected"),
    [
        (BY_HEADER, value(), [], "missing_field: header Kind (missing)"),
        (BY_HEADER, value(), [("Kind", b"\xff")], "not_utf8: header Kind: invalid UTF-8 at byte 0"),
        (BY_HEADER, None, [("Kind", b"deploy")], "tombstone: the message has no value"),
        (BY_FIELD, None, [], "tombstone: the message has no value"),
        (BY_FIELD, b"{}", [], "missing_field: meta.kind (missing)"),
        (BY_FIELD, b'{"meta":{"kind":7}}', [], "wrong_type: meta.kind (string_type)"),
        (BY_FIELD, b'{"meta":"deploy"}', [], "wrong_type: meta (not an object)"),
        (BY_FIELD, b'{"meta":{"kind":"a","kind":"b"}}', [], "not_json: meta.kind: a name occurs twice in one object"),
    ],
)
def test_a_message_of_unreadable_type_is_refused(of: Topic, message: bytes | None, headers: Headers, expected: str):
    assert refusal(message, headers, of) == expected


class WithoutEventId(ForeignContract):
    name: Annotated[Line, Field(max_length=9)]


class TwoSources(Deploy):
    both: Annotated[Annotated[Line, At("a")] | None, FromHeader("B")] = None


class Aliased(Deploy):
    other: Annotated[Line, Field(alias="otherName", max_length=9)]


class NumberInHeader(Deploy):
    number: Annotated[int, FromHeader("N"), Field(ge=0, le=9)]


class NoVersion(Deploy):
    contract_version = 0


class Spaced(Deploy):
    spaced: Annotated[Line, FromHeader("a b"), Field(max_length=9)]


class SameColumn(Deploy):
    one: Annotated[Line, FromHeader("X-A"), Field(max_length=9)]
    two: Annotated[Line, FromHeader("x.a"), Field(max_length=9)]


class Sized(Deploy):
    size: Annotated[Literal["s", "m"] | None, FromHeader("Size")] = None
    at: Annotated[UtcTime, FromHeader("At")] | None = None


@pytest.mark.parametrize(
    ("contract", "changes", "complaint"),
    [
        (WithoutEventId, {}, "contract: WithoutEventId does not define the property event_id"),
        (TwoSources, {}, "TwoSources.both has several sources (header B, a): keep one of them"),
        (Aliased, {}, "Aliased.other has an alias: write `At('otherName')` instead"),
        (NumberInHeader, {}, "NumberInHeader.number comes from a header, which is text: declare it as a text"),
        (NoVersion, {}, "NoVersion.contract_version must be a whole number of at least 1"),
        (Build, {"key": "nothing"}, "key: Build has no field 'nothing'"),
        (Build, {"key": "done_at"}, "key: field 'done_at' must be a required str or int"),
        (Build, {"event_time": "done_at"}, "event_time: 'done_at' is not a required time of Build"),
        (BY_HEADER.contract, {"key": "branch"}, "key: Deploy has no field 'branch'"),
        (Spaced, {"landed": True}, "the sink cannot land a header with a space or a comma in its name: 'a b'"),
        (SameColumn, {"landed": True}, "headers 'X-A' and 'x.a' would share a column of the landing table"),
        (OrderV1, {"key": None}, "key: name the field that is the Kafka key"),
    ],
)
def test_a_topic_that_cannot_work_is_refused(contract: Any, changes: dict[str, Any], complaint: str):
    with pytest.raises(ValueError, match=r"^topic 'builds': ") as caught:
        topic(contract, **changes)
    assert complaint in str(caught.value)


def test_a_topic_knows_its_contracts_headers_and_version():
    assert (BUILDS.contracts, BUILDS.contract_name, BUILDS.version, BUILDS.is_foreign) == ((Build,), "Build", 1, True)
    assert BY_HEADER.headers == ("Kind", "Build-Id")
    assert BY_HEADER.contract_name == "builds"
    assert topic(Sized, key="target").headers == ("Size", "At")
    assert topic(ContractUnion(by=At("kind"), contracts={"d": Deploy}, version=3)).version == 3


@pytest.mark.parametrize(
    ("declare", "complaint"),
    [
        (lambda: At(""), "write the names of members joined by dots"),
        (lambda: At("a..b"), "write the names of members joined by dots"),
        (lambda: At(("a", 'b"')), "without quotes, backslashes and control characters"),
        (lambda: At(()), "write the names of members joined by dots"),
        (lambda: FromHeader("é"), "printable ASCII"),
        (lambda: FromHeader(" a"), "printable ASCII"),
        (lambda: ContractUnion(by=At("a"), contracts={}), "needs at least one contract"),
        (lambda: ContractUnion(by=At("a"), contracts={'"': Deploy}), "use 1 to 100 letters"),
        (lambda: ContractUnion(by=At("a"), contracts={"a": OrderV1}), "create a topic for each type of message"),  # type: ignore[dict-item]
        (lambda: ContractUnion(by=At("a"), contracts={"a": Build, "b": Build}), "of the same name (Build, Build)"),
    ],
)
def test_a_source_or_union_that_cannot_work_is_refused(declare: Any, complaint: str):
    with pytest.raises(ValueError, match=r".") as caught:
        declare()
    assert complaint in str(caught.value)


class OtherDeploy(Deploy):
    contract_name = "Deployment"


def test_a_consumer_of_two_unions_with_contracts_of_one_name_is_refused():
    other = Topic("other", OtherDeploy, key=None, partitions=1, retention=None)
    with pytest.raises(ValueError, match="are both named Deployment"):
        Consumer(name="both", topics=(BY_HEADER, other), effect="nowhere:effect")


class MoreOfBuild(Build):
    contract_name = "Build"
    log: Annotated[Line, At("result.log"), Field(max_length=200)] | None = None


def test_events_with_equal_picked_fields_do_not_differ():
    first, second = digest(BUILDS.parse(value(), HEADERS)), digest(BUILDS.parse(value(anything=[1]), HEADERS))
    assert not differ(first, second)
    assert differ(first, digest(BUILDS.parse(value(attempt=2), HEADERS)))


def test_after_one_more_picked_field_a_copy_of_an_event_is_no_conflict():
    before, after = (digest(topic(contract).parse(value(), HEADERS)) for contract in (Build, MoreOfBuild))
    assert before != after
    assert not differ(before, after)
    assert differ(after, digest(topic(MoreOfBuild).parse(value(result={"log": "y"}), HEADERS)))


def test_repairs_of_a_foreign_contract_change_the_whole_payload():
    repairs = Repairs()
    repairs.renamed(BUILDS, {"try": "attempt"})

    @repairs.repair(BUILDS)
    def nested(message: bytes) -> bytes | None:
        document = to_document(message)
        if document is None or not isinstance(document["source"]["branch"], str):
            return None
        return to_value({**document, "source": {"branch": {"name": document["source"]["branch"]}}})

    old = value(source={"branch": "main"}).replace(b'"attempt"', b'"try"')
    repaired = repairs.apply(BUILDS, old, HEADERS)
    assert repaired.repairs == ("renamed try to attempt", "nested")
    assert repaired.event == BUILDS.parse(value(), HEADERS)
    assert json.loads(repaired.value)["anything"] is None
    with pytest.raises(ValueError, match="its contract has no field 'name'"):
        repairs.renamed(BUILDS, {"x": "name"})
    with pytest.raises(NotWanted):
        Repairs().apply(BY_HEADER, old, [("Kind", b"third")])


@pytest.mark.parametrize("kind", ["push", "issues", "pull_request"])
def test_each_built_message_is_rejected_for_its_reason(kind: str):
    of = webhooks.topic()
    (webhook,) = webhooks.webhooks(1, kinds=(kind,))
    messages = broken_foreign(of, webhook.value, webhook.headers)
    assert len(messages) == 7
    for reason, message in messages.items():
        assert refusal(message, webhook.headers, of).startswith(f"{reason}: ")


def test_webhooks_are_parsed_by_the_contract_of_their_type():
    of = webhooks.topic()
    contracts = set()
    for webhook in webhooks.webhooks(40):
        assert 4_000 < len(webhook.value) < 30_000
        try:
            contracts.add((webhook.kind, type(of.parse(webhook.value, webhook.headers)).__name__))
        except NotWanted:
            contracts.add((webhook.kind, None))
    assert contracts == {("push", "Push"), ("issues", "Issue"), ("pull_request", "PullRequest"), ("star", None)}


member_names = st.text(max_size=3) | st.just("branch")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(member_names, inner, max_size=3),
    max_leaves=6,
)
header_values = st.none() | st.binary(max_size=4) | st.just(b"build")
some_headers = st.lists(st.tuples(st.sampled_from(["Build-Id", "Kind", "x"]), header_values), max_size=4)


def outcome(of: Topic, message: bytes | None, headers: Headers) -> Contract | ContractViolation | NotWanted:
    try:
        return of.parse(message, headers)
    except (ContractViolation, NotWanted) as refused:
        return refused


@pytest.mark.parametrize("of", [BUILDS, BY_HEADER, BY_FIELD])
@given(data=st.data())
def test_any_message_is_an_event_a_violation_or_not_wanted(of: Topic, data: st.DataObject):
    parts = st.dictionaries(st.sampled_from([*DOCUMENT, "kind"]), json_values, max_size=3)
    message = data.draw(st.binary(max_size=50) | parts.map(lambda changes: value(**changes)) | st.none())
    result = outcome(of, message, data.draw(some_headers))
    if isinstance(result, ContractViolation):
        assert result.detail.isprintable()
        assert result.reason in set(Reason)
    elif isinstance(result, NotWanted):
        assert of is not BUILDS
    else:
        assert digest(result)
