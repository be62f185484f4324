"""A run of the standard lane with foreign contracts: a union has one clean table, and the counts balance."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pytest
from confluent_kafka.admin import NewTopic
from pydantic import Field

from include.streams.contracts import At, ContractUnion, Topic
from include.streams.contracts.topics import HEADERS_LANDED, header_column
from include.streams.contracts.types import Line
from include.streams.lake.catalog import load_catalog
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.tables import clean_table, create_landing_table, headers_of, load_landing_table
from tests import webhooks
from tests.integration.kafka.conftest import open_claims, read_all, wait_for_topics
from tests.integration.landing.conftest import delete_records
from tests.integration.landing.test_run import run
from tests.webhooks import Webhook

pytestmark = pytest.mark.integration
COUNTS = ("landed", "clean", "dead_lettered", "duplicates", "not_wanted")


@pytest.fixture
def make_lane(landing_services, admin, operations) -> Callable[..., LandingConsumer]:
    def make(topic: Topic | None = None) -> LandingConsumer:
        if topic is None:
            topic = webhooks.topic(name=f"hooks.{uuid.uuid4().hex[:8]}", landed=True)
            new = [NewTopic(topic.name, topic.partitions, 1), NewTopic(topic.dead_letter_name, 1, 1)]
            for future in admin.create_topics(new).values():
                future.result(30)
            wait_for_topics(admin, topic.name, topic.dead_letter_name)
            create_landing_table(topic)
        settings: dict[str, Any] = {"min_messages_per_unit": 1, "landing_grace": timedelta()}
        return LandingConsumer(name=f"hooks-{uuid.uuid4().hex[:8]}", topic=topic, **settings)

    return make


def again(lane: LandingConsumer, topic: Topic) -> LandingConsumer:
    """The lane after its topic's contract has changed."""
    return LandingConsumer(name=lane.name, topic=topic, min_messages_per_unit=1, landing_grace=timedelta())


Sent = list[tuple[bytes | None, list]]


def land(topic: Topic, first: int, messages: Sent, *, headers_landed: str | None = None) -> None:
    """Append one data file as the sink does; without headers if the sink does not know them yet."""
    import pyarrow as pa

    table = load_landing_table(topic)
    count = len(messages)
    columns: dict[str, Any] = {
        "topic": [topic.name] * count,
        "partition": [0] * count,
        "offset": list(range(first, first + count)),
        "timestamp": [datetime(2026, 1, 5, tzinfo=UTC)] * count,
        "value": [None if value is None else value.decode("utf-8", "replace") for value, _ in messages],
    }
    landed = ",".join(topic.headers) if headers_landed is None else headers_landed
    for name in headers_of(table):
        is_landed = name in landed.split(",")
        columns[header_column(name)] = [dict(headers).get(name) if is_landed else None for _, headers in messages]
    if HEADERS_LANDED in table.schema().column_names:
        columns[HEADERS_LANDED] = [landed or None] * count
    table.append(pa.table(columns, schema=table.schema().as_arrow()))


def deliver(lane: LandingConsumer, send, messages: Sent, first: int = 0, **landing: Any) -> None:
    for value, headers in messages:
        send(lane.topic, value, headers=headers)
    land(lane.topic, first, messages, **landing)


def of(some: list[Webhook]) -> Sent:
    return [(one.value, one.headers) for one in some]


def counts(summary: dict[str, Any]) -> tuple[int, ...]:
    return tuple(summary[name] for name in COUNTS)


def clean(topic: Topic) -> list[dict[str, Any]]:
    found = load_catalog().load_table(clean_table(topic)).scan().to_arrow().to_pylist()
    return sorted(found, key=lambda row: row["kafka_offset"])


def test_the_counts_of_a_run_with_a_union_balance(make_lane, send):
    lane = make_lane()
    some = list(webhooks.webhooks(40))
    push, issue = some[0], some[1]
    bad: Sent = [
        (b"{}", push.headers),
        (b"\xff", push.headers),
        (None, issue.headers),
        (push.value, []),
        (push.value, [("X-Hub-Event", b"push"), ("X-Hub-Delivery", b"\xff")]),
    ]
    copies: Sent = [(json.dumps({**push.document, "stars": 1}).encode(), push.headers)]
    conflicts: Sent = [(json.dumps({**push.document, "ref": "other"}).encode(), push.headers)]
    # The same id under two contracts is two events.
    same_id: Sent = [(issue.value, [("X-Hub-Event", b"issues"), ("X-Hub-Delivery", push.delivery.encode())])]
    deliver(lane, send, [*of(some), *bad, *copies, *conflicts, *same_id])
    assert counts(run(lane)) == (48, 31, 6, 1, 10)
    assert open_claims(lane) == 0
    rows = clean(lane.topic)
    assert {(row["contract"], row["event_id"]) for row in rows} == {
        *((name, one.delivery) for one in some if (name := {"push": "Push", "issues": "Issue"}.get(one.kind))),
        *(("PullRequest", one.delivery) for one in some if one.kind == "pull_request"),
        ("Issue", push.delivery),
    }
    (row,) = [row for row in rows if row["kafka_offset"] == 0]
    event = lane.topic.parse(push.value, push.headers)
    assert row["contract"] == "Push"
    assert {name: row[name] for name in type(event).model_fields} == event.model_dump()
    assert row["opened_at"] is row["labels"] is None
    (row,) = [row for row in rows if row["kafka_offset"] == 2]
    assert json.loads(row["labels"])[0] == {"name": "bug"}
    letters = {letter.value(): dict(letter.headers()) for letter in read_all(lane.topic.dead_letter_name)}
    assert (
        letters[b"{}"]["dlq.detail"]
        == b"deleted (missing), ref (missing), repository.full_name (missing), sender.login (missing)"
    )
    assert letters[b"{}"]["X-Hub-Delivery"] == push.delivery.encode()
    assert letters[conflicts[0][0]]["dlq.reason"] == b"conflict"


def test_events_repeated_in_a_later_run_are_duplicates_within_a_contract(make_lane, send):
    lane = make_lane()
    some = list(webhooks.webhooks(8))
    deliver(lane, send, of(some))
    assert counts(run(lane)) == (8, 6, 0, 0, 2)
    deliver(lane, send, of(some), first=8)
    assert counts(run(lane, "run-2")) == (8, 0, 0, 6, 2)


def test_rows_landed_without_their_headers_get_them_from_kafka(make_lane, send, admin):
    lane = make_lane()
    some = list(webhooks.webhooks(8))
    deliver(lane, send, of(some), headers_landed="")
    assert counts(run(lane)) == (8, 6, 0, 0, 2)
    more = list(webhooks.webhooks(4, seed=2))
    deliver(lane, send, of(more), first=8, headers_landed="")
    delete_records(admin, lane.topic, 0, 12)
    # Their types cannot be known any more, so they become dead letters with their landed text.
    assert counts(run(lane, "run-2")) == (4, 0, 4, 0, 0)
    kept = read_all(lane.topic.dead_letter_name)
    assert [letter.value() for letter in kept] == [one.value for one in more]
    assert dict(kept[0].headers())["dlq.landed_text"] == b"true"


def test_a_record_that_kafka_removed_keeps_its_landed_headers(make_lane, send, admin):
    lane = make_lane()
    (one,) = webhooks.webhooks(1)
    deliver(lane, send, [(b"{}", one.headers)])
    delete_records(admin, lane.topic, 0, 1)
    assert counts(run(lane)) == (1, 0, 1, 0, 0)
    (letter,) = read_all(lane.topic.dead_letter_name)
    headers = dict(letter.headers())
    assert (headers["X-Hub-Event"], headers["X-Hub-Delivery"]) == (b"push", one.delivery.encode())
    assert headers["dlq.landed_text"] == b"true"


class Wider(webhooks.Push):
    contract_name = "Push"
    branch: Annotated[Line, At("repository.default_branch"), Field(max_length=40)] | None = None


def test_a_copy_is_still_a_duplicate_after_a_further_field_is_picked(make_lane, send):
    lane = make_lane()
    some = list(webhooks.webhooks(4, kinds=("push",)))
    deliver(lane, send, of(some))
    assert counts(run(lane)) == (4, 4, 0, 0, 0)
    union = ContractUnion(by=webhooks.WEBHOOKS.by, contracts={**webhooks.WEBHOOKS.contracts, "push": Wider})
    wider = again(lane, webhooks.topic(union, lane.topic.name, landed=True))
    changed = (json.dumps({**some[1].document, "ref": "other"}).encode(), some[1].headers)
    new = list(webhooks.webhooks(1, seed=9, kinds=("push",)))
    deliver(wider, send, [*of(some), changed, *of(new)], first=4)
    assert counts(run(wider, "run-2")) == (6, 1, 1, 4, 0)
    assert [row["branch"] for row in clean(lane.topic)] == [None, None, None, None, "main"]


def test_a_landing_table_gets_columns_for_headers_picked_later(make_lane, send):
    lane = make_lane()
    before = {field.name for field in load_landing_table(lane.topic).schema().fields}
    assert before >= {"header_x_hub_event", "header_x_hub_delivery", HEADERS_LANDED}

    class Agent(webhooks.Push):
        contract_name = "Push"
        agent: Annotated[Line, webhooks.FromHeader("User-Agent"), Field(max_length=40)] | None = None

    deliver(lane, send, of(list(webhooks.webhooks(1))))
    union = ContractUnion(by=webhooks.WEBHOOKS.by, contracts={**webhooks.WEBHOOKS.contracts, "push": Agent})
    changed = webhooks.topic(union, lane.topic.name, landed=True)
    with_agent = again(lane, changed)
    # Before the table has the column, and after it: the header comes from the record in Kafka.
    assert counts(run(with_agent)) == (1, 1, 0, 0, 0)
    table = create_landing_table(changed)
    assert headers_of(table) == [*lane.topic.headers, "User-Agent"]
    assert create_landing_table(changed).metadata.current_schema_id == table.metadata.current_schema_id
    deliver(with_agent, send, of(list(webhooks.webhooks(1, seed=2))), first=1)
    assert counts(run(with_agent, "run-2")) == (1, 1, 0, 0, 0)
    assert [row["agent"] for row in clean(changed)] == ["Hub-Hookshot/1"] * 2
