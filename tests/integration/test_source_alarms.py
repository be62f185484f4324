"""One source that breaks a rule: an alarm with its name, no stopped run, and no alarm once it behaves."""

from __future__ import annotations

import uuid
from typing import Any

import pyarrow as pa
import pytest

from include.operations.alarms import open_alarms
from include.operations.migrate import upgrade
from include.validators.results import load_page
from include.validators.rules import SetSuite, SourceRule
from include.validators.sets import check_run
from include.validators.sources import MAX_ALARMS

pytestmark = pytest.mark.integration

SUITE = SetSuite(
    name="orders",
    columns=("shop", "amount"),
    sources=(
        SourceRule(
            kind="shop_sells_too_much",
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
    return {alarm.kind: alarm.message for alarm in open_alarms() if alarm.source == consumer}


def test_a_source_is_named_until_it_behaves_again(consumer):
    assert check(consumer, 1, {"a": 61, "b": 2, HOSTILE: 12})["warnings"] == ["shops that sell too much"]
    kinds = alarms(consumer)
    assert set(kinds) == {"shop_sells_too_much:a", f"shop_sells_too_much:{HOSTILE}"}
    assert kinds["shop_sells_too_much:a"].startswith("a: 61 in one order; expected: at most 10. Its rows go on.")
    page = load_page(consumer, 1)
    assert page
    assert HOSTILE not in page
    # A run without the source says nothing about it.
    check(consumer, 2, {"b": 1})
    assert set(alarms(consumer)) == set(kinds)
    check(consumer, 3, {"a": 3, HOSTILE: 50})
    assert set(alarms(consumer)) == {f"shop_sells_too_much:{HOSTILE}"}
    check(consumer, 4, {HOSTILE: 1})
    assert alarms(consumer) == {}


def test_a_thousand_sources_open_a_few_alarms_and_stop_nothing(consumer):
    for claim_id in range(4):
        check(consumer, claim_id, {f"shop-{claim_id}-{n}": 20 + n for n in range(1_000)})
    assert len(alarms(consumer)) == MAX_ALARMS
