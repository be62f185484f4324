"""Customers' days and warnings, compared with a slow and simple computation."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from statistics import quantiles
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from pydantic import ValidationError

from include.water.flows.definition import KNOWN_DAYS, TIME_ZONE
from include.water.usage.compute import MIN_CONTINUOUS_HOURS, MIN_CONTINUOUS_LITRES, MIN_OTHERS, compute, last_days
from include.water.usage.customers import Customer, Entry, Tenure, assign, household
from include.water.usage.documents import SHOWN_DAYS, content_hash, documents, encode, path_of

# The clocks go back on 1 November 2026: a day of 25 hours.
TODAY = date(2026, 11, 4)
DAYS = last_days(TODAY, 6)
START = datetime(2026, 10, 30, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)
Flow = tuple[str, datetime, float | None]


def local(hour: datetime) -> date:
    return hour.astimezone(TIME_ZONE).date()


def network(seed: int, customers: int = 60, hours: int = 24 * 6) -> tuple[list[Customer], list[Flow]]:
    """Households that use water by day, some with a running tap, with unknown and missing hours."""
    chance = random.Random(seed)
    people, flows = [], []
    for n in range(customers):
        meter = f"M-{n:06d}"
        district = chance.choices(["harbour", "valley"], [5, 1])[0]
        since = chance.choice([None, None, None, TODAY - timedelta(days=2)])
        people.append(Customer(f"C-{n:06d}", meter, district, chance.choice(["1", "2", "3-4"]), since))
        tap = chance.choice([0, 0, 0, 2.5, 30])
        tap_from, gap = chance.randrange(hours), chance.random() < 0.4
        for number in range(hours):
            if gap and chance.random() < 0.01:
                continue
            used = chance.expovariate(1 / 12) if chance.random() < 0.6 else 0.0
            litres = round(used + (tap if number >= tap_from else 0), 3)
            flows.append((meter, START + number * HOUR, None if gap and chance.random() < 0.01 else litres))
    flows += [("M-900001", START + number * HOUR, 900.0) for number in range(hours)]
    chance.shuffle(flows)
    return people, flows


def by_sql(
    customers: list[Customer], flows: list[Flow], shown: list[date] | None = None, days: Sequence[date] = DAYS
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    schema = pa.schema([("meter_id", pa.string()), ("hour", pa.timestamp("us", "UTC")), ("litres", pa.float64())])
    table = pa.Table.from_pylist([dict(zip(schema.names, flow, strict=True)) for flow in flows], schema)
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        usage = compute(connection, table, customers, days, shown)
    return usage.days.to_pylist(), usage.flows.to_pylist()


def by_hand(customers: list[Customer], flows: list[Flow]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    days, runs = [], []
    for customer in customers:
        known = {
            hour: litres
            for meter, hour, litres in flows
            if meter == customer.meter_id and litres is not None and local(hour) in DAYS
            if customer.since is None or local(hour) >= customer.since
        }
        marked = set()
        run: list[datetime] = []
        for number in range(24 * 8):
            hour = START - 24 * HOUR + number * HOUR
            if known.get(hour, 0) >= MIN_CONTINUOUS_LITRES:
                run.append(hour)
                continue
            if len(run) >= MIN_CONTINUOUS_HOURS:
                marked |= set(run)
                runs.append(
                    {
                        "customer_id": customer.customer_id,
                        "starts_at": run[0],
                        "ends_at": run[-1] + HOUR,
                        "hours": len(run),
                        "least_litres_per_hour": pytest.approx(min(known[hour] for hour in run), abs=0.051),
                        "running": run[-1] == max(known),
                    }
                )
            run = []
        for day in DAYS:
            here = [hour for hour in known if local(hour) == day]
            hours = 25 if day == date(2026, 11, 1) else 24
            if here:
                days.append(
                    {
                        "customer_id": customer.customer_id,
                        "day": day,
                        "district_id": customer.district_id,
                        "household": customer.household,
                        "litres": pytest.approx(sum(known[hour] for hour in here), abs=0.051),
                        "exact": sum(known[hour] for hour in here),
                        "known_hours": len(here),
                        "expected_hours": hours,
                        "complete": len(here) == hours,
                        "continuous_flow": bool(marked & set(here)),
                    }
                )
    groups = defaultdict(list)
    for row in days:
        if row["complete"]:
            groups[row["day"], row["household"], row["district_id"]].append(row["exact"])
            groups[row["day"], row["household"], None].append(row["exact"])
    for row in days:
        row.update(dict.fromkeys(("peer_group", "peer_households", "peer_low", "peer_median", "peer_high")))
        for name, district in (("network", None), ("district", row["district_id"])):
            group = groups[row["day"], row["household"], district]
            if row["complete"] and len(group) >= MIN_OTHERS + 1:
                low, median, high = (
                    pytest.approx(value, abs=5.1) for value in quantiles(group, n=4, method="inclusive")
                )
                row |= {"peer_group": name, "peer_households": len(group) // 10 * 10}
                row |= {"peer_low": low, "peer_median": median, "peer_high": high}
        del row["exact"]
    return sorted(days, key=lambda row: (row["day"], row["customer_id"])), runs


@pytest.mark.parametrize("seed", range(4))
def test_days_comparisons_and_warnings_match_a_plain_computation(seed: int):
    customers, flows = network(seed)
    days, runs = by_sql(customers, flows)
    expected_days, expected_runs = by_hand(customers, flows)
    assert days == expected_days
    assert runs == expected_runs
    assert {row["peer_group"] for row in days} == {None, "district", "network"}
    assert {row["running"] for row in runs} == {True, False}
    assert {row["complete"] for row in days} == {True, False}
    assert {row["continuous_flow"] for row in days} == {True, False}


def household_of(number: int, litres: float, hours: int = 24) -> tuple[Customer, list[Flow]]:
    """A customer in Harbour with this use in each of the first hours of 2 November."""
    first = datetime(2026, 11, 2, 8, tzinfo=UTC)
    meter = f"M-{number:06d}"
    customer = Customer(f"C-{number:06d}", meter, "harbour", "2", None)
    return customer, [(meter, first + n * HOUR, litres) for n in range(hours)]


@pytest.mark.parametrize(("households", "compared"), [(MIN_OTHERS, False), (MIN_OTHERS + 1, True)])
def test_a_household_is_compared_only_with_ten_others_or_more(households: int, compared: bool):
    people = [household_of(n, 10.0 + n) for n in range(households)]
    # Incomplete days are compared with nothing, and nothing is compared with them.
    people += [household_of(100 + n, 1.0, hours=23) for n in range(5)]
    days, _ = by_sql([customer for customer, _ in people], [flow for _, flows in people for flow in flows])
    whole = [row for row in days if row["complete"]]
    assert len(whole) == households
    assert {row["peer_group"] for row in whole} == {"district" if compared else None}
    assert {row["peer_median"] for row in whole} == {360.0 if compared else None}
    assert all(row["peer_group"] is None for row in days if not row["complete"])


def test_only_the_shown_days_are_returned_but_earlier_hours_count():
    customer, flows = household_of(1, 5.0, hours=30)
    days, _ = by_sql([customer], flows, shown=[date(2026, 11, 3)])
    assert [(row["day"], row["known_hours"], row["continuous_flow"]) for row in days] == [(date(2026, 11, 3), 6, True)]


@pytest.mark.parametrize(
    ("silent_days", "warns"), [(0, True), (KNOWN_DAYS, True), (KNOWN_DAYS + 1, False), (20, False)]
)
def test_a_meter_silent_for_long_has_no_running_flow(silent_days: int, warns: bool):
    # Its last hour is on the evening of 3 November.
    customer, flows = household_of(1, 5.0, hours=40)
    today = date(2026, 11, 3) + timedelta(days=silent_days)
    days, runs = by_sql([customer], flows, days=last_days(today, 30))
    assert [(run["hours"], run["running"]) for run in runs] == [(40, warns)]
    document = documents(days, runs)[customer.customer_id]
    # The days still show the flow.
    assert [day["continuous_flow"] for day in document["days"]] == [True, True]
    assert bool(document["continuous_flow"]) == warns


def test_a_customer_without_shown_days_has_no_object():
    silent, before = household_of(1, 5.0)
    other, flows = household_of(2, 5.0, hours=40)
    days, runs = by_sql([silent, other], [*before, *flows], shown=[date(2026, 11, 3)])
    assert [run["running"] for run in runs] == [True, True]
    by_customer = documents(days, runs)
    assert set(by_customer) == {other.customer_id}
    assert by_customer[other.customer_id]["continuous_flow"]["hours"] == 40


def entry(customer: str, meter: str, day: int = 1, persons: int = 2) -> Entry:
    return Entry(customer, meter, "harbour", persons, datetime(2026, 11, day, tzinfo=UTC))


def test_a_new_customer_sees_no_earlier_days():
    customers, tenures = assign([entry("C-000001", "M-000001"), entry("C-000002", "M-000002")], {}, TODAY)
    assert [customer.since for customer in customers] == [None, None]
    # First the register still has the old customer; then the home is empty; then it has a new customer.
    moved = [entry("C-000001", "M-000001"), entry("C-000003", "M-000001", day=2), entry("C-000002", "M-000002")]
    customers, after = assign(moved, tenures, TODAY)
    assert [(customer.customer_id, customer.since) for customer in customers] == [
        ("C-000002", None),
        ("C-000003", TODAY),
    ]
    customers, after = assign([entry("C-000002", "M-000002")], after, TODAY + timedelta(days=1))
    assert after["M-000001"] == Tenure("C-000003", TODAY)
    later = TODAY + timedelta(days=2)
    customers, after = assign([entry("C-000004", "M-000001"), entry("C-000002", "M-000002")], after, later)
    assert [(customer.customer_id, customer.since) for customer in customers] == [
        ("C-000002", None),
        ("C-000004", later),
    ]
    again, _ = assign([entry("C-000004", "M-000001"), entry("C-000002", "M-000002")], after, later + timedelta(days=9))
    assert again == customers


def test_households_of_similar_size_are_one_group():
    assert [household(persons) for persons in (1, 2, 3, 4, 5, 20)] == ["1", "2", "3-4", "3-4", "5+", "5+"]


def test_an_object_shows_new_days_the_group_and_the_running_flow():
    customers, flows = network(0)
    days, runs = by_sql(customers, flows)
    by_customer = documents(days, runs)
    assert set(by_customer) == {row["customer_id"] for row in days}
    running = {row["customer_id"] for row in runs if row["running"]}
    assert {customer for customer, document in by_customer.items() if document["continuous_flow"]} == running
    document = next(one for one in by_customer.values() if any(day["like_households"] for day in one["days"]))
    assert [day["day"] for day in document["days"]] == sorted((day["day"] for day in document["days"]), reverse=True)
    assert json.loads(encode(document, 7)) == {**document, "as_of": 7}
    assert content_hash({**document, "as_of": 7}) == content_hash(document)
    many = [{**days[0], "day": TODAY - timedelta(days=n)} for n in range(SHOWN_DAYS + 5)]
    assert len(next(iter(documents(many, []).values()))["days"]) == SHOWN_DAYS


@pytest.mark.parametrize(
    "text", ["C-1", "../C-000001", "C-000001/x", "C-000001\n", "", "M-000001", "C-\u0660\u0660\u0660\u0660\u0660\u0660"]
)
def test_only_a_customers_id_becomes_a_path(text: str):
    with pytest.raises(ValidationError):
        path_of(text)
    assert path_of("C-000001") == "usage/customers/C-000001.json"
