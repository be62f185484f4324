"""A source that breaks a rule: an alarm with its name, no stopped run, and no alarm after the fault is gone."""

from __future__ import annotations

import uuid
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import text

from include.streams.operations.alarm_kinds import KindWithRunbook
from include.streams.operations.alarms import open_alarms
from include.streams.operations.database import begin
from include.streams.operations.migrate import upgrade
from include.streams.validators.results import load_page
from include.streams.validators.rules import SetSuite, SourceRule
from include.streams.validators.sets import check_run
from include.streams.validators.sources import MAX_ALARMS

pytestmark = pytest.mark.integration


class ShopAlarmKind(KindWithRunbook):
    shop_sells_too_much = "shop_sells_too_much", "suite-failed.md"


SUITE = SetSuite(
    name="orders",
    columns=("shop", "amount"),
    sources=(
        SourceRule(
            kind=ShopAlarmKind.shop_sells_too_much,
            title="shops that sell too much",
            expected="at most 10",
            query="select shop as source, max(amount) as found, found > 10 as breaks from run group by shop",
            unit="in one order",
            remedy="call the shop",
        ),
    ),
)
HOSTILE = "<script>'--"


@pytest.fixture
def consumer(landing_services) -> str:
    upgrade()
    return f"consumer_{uuid.uuid4().hex[:8]}"


def check(consumer: str, claim_id: int, amounts: dict[str, int]) -> dict[str, Any]:
    rows = pa.table({"shop": list(amounts), "amount": list(amounts.values())})
    return check_run(consumer, SUITE, rows, {"claim_id": claim_id, "ranges": []})


def alarms(consumer: str) -> dict[str, str]:
    """{shop: message}"""
    mine = [alarm for alarm in open_alarms() if alarm.source == consumer]
    assert {alarm.kind for alarm in mine} <= {"shop_sells_too_much"}
    return {alarm.key: alarm.message for alarm in mine}


def test_a_faulty_source_has_an_alarm_until_it_is_cured(consumer):
    assert check(consumer, 1, {"a": 61, "b": 2, HOSTILE: 12})["warnings"] == ["shops that sell too much"]
    shops = alarms(consumer)
    assert set(shops) == {"a", HOSTILE}
    assert shops["a"].startswith("a: 61 in one order; expected: at most 10. Its rows are processed.")
    page = load_page(consumer, 1)
    assert page
    assert HOSTILE not in page
    # A run without the source does not change its alarm.
    check(consumer, 2, {"b": 1})
    assert set(alarms(consumer)) == set(shops)
    check(consumer, 3, {"a": 3, HOSTILE: 50})
    assert set(alarms(consumer)) == {HOSTILE}
    check(consumer, 4, {HOSTILE: 1})
    assert alarms(consumer) == {}


def test_a_thousand_faulty_sources_open_a_few_alarms(consumer):
    for claim_id in range(4):
        check(consumer, claim_id, {f"shop-{claim_id}-{n}": 20 + n for n in range(1_000)})
    assert len(alarms(consumer)) == MAX_ALARMS


def weeks_pass(consumer: str, weeks: int) -> None:
    older = text("update alarms set opened_at = opened_at - make_interval(weeks => :weeks) where source = :source")
    with begin() as connection:
        connection.execute(older, {"weeks": weeks, "source": consumer})


def closed(consumer: str) -> dict[str, str]:
    mine = text("select key, message from alarms where source = :source and closed_at is not null")
    with begin() as connection:
        return {shop: message for shop, message in connection.execute(mine, {"source": consumer})}


def test_sources_that_stopped_sending_do_not_block_others(consumer):
    replaced = [f"shop-{n}" for n in range(MAX_ALARMS)]
    for claim_id in range(MAX_ALARMS // 2):
        check(consumer, claim_id, {shop: 20 for shop in replaced[2 * claim_id : 2 * claim_id + 2]})
    weeks_pass(consumer, 3)
    check(consumer, 20, {"new": 50})
    assert set(alarms(consumer)) == set(replaced)
    weeks_pass(consumer, 2)
    # One of them still sends, with a small fault compared with others of this run: its alarm stays.
    many = {f"new-{n}": 1_000 + n for n in range(1_000)}
    check(consumer, 21, {"shop-0": 11, **many})
    named = set(alarms(consumer))
    assert named - set(many) == {"shop-0"}
    assert 1 < len(named) <= MAX_ALARMS
    # The other alarms are closed, with the reason.
    assert set(closed(consumer)) == set(replaced[1:])
    assert all("(open for more than 4 weeks" in message for message in closed(consumer).values())
    # A source that sends again is named again.
    check(consumer, 22, {"shop-0": 11, "shop-7": 50})
    assert set(alarms(consumer)) == {*named, "shop-7"}


def test_an_old_alarm_closes_in_a_run_without_faults(consumer):
    check(consumer, 1, {"replaced": 50})
    weeks_pass(consumer, 5)
    check(consumer, 2, {"b": 1})
    assert alarms(consumer) == {}
    assert set(closed(consumer)) == {"replaced"}
