"""The simulated meters: their counters match the network's ground truth, including planted leaks and taps."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from random import Random
from typing import get_args

import pytest

from include.streams.contracts import ContractViolation, Reason
from include.streams.formats.errors import FormatReason
from include.water.flows.tables import DISTRICT_HOURS, DISTRICT_NIGHTS, METER_HOURS
from include.water.simulators import traffic
from include.water.simulators.meters import NO_FAULTS, Faults, Readings, reading, send_history
from include.water.simulators.network import Network
from include.water.sites import DISTRICTS
from include.water.topics import METER_READINGS
from tests.unit.water import exact_flows

UNTIL = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
FAULTS = Faults(missing=0.02, outages=0.05, late=0.05, duplicates=0.02)


@pytest.fixture(scope="module")
def network() -> Network:
    return Network()


def readings(network: Network, days: int = 2, **options) -> Readings:
    return Readings(network, UNTIL - days * DAY, UNTIL, **options)


def event_id(value: bytes | None) -> str:
    return METER_READINGS.parse(value).event_id


def test_the_network_has_every_districts_inlet_and_hundreds_of_customers(network):
    assert len(network.households) > 200
    inlets = {meter.district_id: meter.meter_id for meter in network.meters if meter.kind == "inlet"}
    assert inlets == {district.district_id: district.inlet_meter_id for district in DISTRICTS.values()}
    assert len({meter.meter_id for meter in network.meters}) == len(network.meters)
    assert len({meter.customer_id for meter in network.households}) == len(network.households)


def test_the_messages_are_as_the_contract_serializes_them(network):
    for key, value in islice(readings(network), 3_000):
        assert METER_READINGS.serialize(METER_READINGS.parse(value)) == (key, value)


def test_the_same_seed_sends_the_same_messages_and_another_seed_others(network):
    first = list(readings(network, faults=FAULTS))
    again = readings(Network(), faults=FAULTS)
    assert list(again) == first
    assert list(again) == first, "and so does a second iteration"
    assert list(readings(Network(seed=2), faults=FAULTS)) != first


def test_a_span_has_the_readings_that_a_longer_one_has_there(network):
    short = {value for _, value in readings(network, faults=NO_FAULTS)}
    assert short <= {value for _, value in readings(network, days=4, faults=NO_FAULTS)}


def test_without_faults_every_meter_is_read_once_an_interval(network):
    by_meter = defaultdict(list)
    for key, value in readings(network, faults=NO_FAULTS, interval=timedelta(minutes=15)):
        by_meter[key].append(json.loads(value)["read_at"])
    assert len(by_meter) == len(network.meters)
    for moments in by_meter.values():
        assert len(moments) == 2 * 24 * 4
        steps = {b - a for a, b in pairwise(map(datetime.fromisoformat, moments))}
        assert steps == {timedelta(minutes=15)}


def test_the_counts_match_the_sent_messages(network):
    sent = readings(network, days=4, faults=Faults(**{**FAULTS.__dict__, "bad": 3}))
    good, bad = Counter(), Counter()
    for _, value in sent:
        try:
            good[event_id(value)] += 1
        except ContractViolation as violation:
            bad[violation.reason] += 1
    assert len(good) == sent.counts["readings"]
    assert good.total() - len(good) == sent.counts["duplicates"] > 0
    assert bad == dict.fromkeys(set(Reason) - {Reason.conflict, Reason.rejected, *get_args(FormatReason)}, 3)
    assert bad.total() == sent.counts["bad"]
    assert sent.counts["readings"] + sent.counts["missing"] == 4 * 24 * len(network.meters)
    assert sent.counts["missing"] > 0.02 * sent.counts["readings"]


def test_some_readings_are_late_and_those_of_meters_mix(network):
    sent = readings(network, faults=FAULTS)
    newest, late, out_of_order, last = datetime(2000, 1, 1, tzinfo=UTC), 0, 0, ""
    for _, value in sent:
        read_at = json.loads(value)["read_at"]
        late += datetime.fromisoformat(read_at) < newest - 10 * timedelta(minutes=1)
        out_of_order += read_at < last
        newest, last = max(newest, datetime.fromisoformat(read_at)), read_at
    assert late >= sent.counts["late"] * 0.9 > 100
    assert out_of_order > late


def test_the_live_stream_continues_the_history(network):
    last = {}
    for key, value in readings(network, faults=NO_FAULTS):
        last[key.decode()] = json.loads(value)["litres_total"]
    for meter in network.meters:
        live = reading(network, meter, UNTIL + timedelta(minutes=1))
        litres = live.litres_total - last[meter.meter_id]
        assert 0 <= litres < (20_000 if meter.kind == "inlet" else 2_500)


def test_live_readings_are_current_and_no_counter_falls():
    before = datetime.now(UTC)
    seen = {}
    for event in islice(traffic.meter_readings(Random(1)), 1_000):
        assert before <= event.read_at <= datetime.now(UTC)
        assert event.litres_total >= seen.get(event.meter_id, 0)
        seen[event.meter_id] = event.litres_total
    assert len(seen) == len(Network().meters)


def test_counters_rise_except_where_a_meter_was_replaced(network):
    start = UNTIL - 20 * DAY
    swaps = network.swaps(start, UNTIL)
    assert swaps
    fell, before = set(), {}
    for moment in (start + n * 6 * HOUR for n in range(81)):
        counters = {meter.meter_id: network.counter(meter.meter_id, moment) for meter in network.meters}
        fell |= {meter_id for meter_id, litres in before.items() if counters[meter_id] < litres}
        before = counters
    assert fell == {swap.meter_id for swap in swaps}
    swap = swaps[0]
    assert network.counter(swap.meter_id, swap.at) == 0
    assert network.counter(swap.meter_id, swap.at - timedelta(seconds=1)) > 0


def test_the_inflow_is_the_use_plus_the_losses(network):
    rows = exact_flows.district_hours(network, UNTIL - 4 * DAY, UNTIL).to_pylist()
    assert len(rows) == 8 * 96
    for row in rows:
        assert row["loss_litres"] > 0
        assert row["inlet_litres"] == pytest.approx(row["metered_litres"] + row["loss_litres"], abs=0.01)


def test_planted_leaks_raise_night_losses_until_their_repair(network):
    start = UNTIL - 60 * DAY
    rows = exact_flows.district_nights(network, start, UNTIL).to_pylist()
    loss = {(row["district_id"], row["night"]): row["night_loss_lph"] for row in rows}
    leaks = network.planted_leaks(start + 2 * DAY, UNTIL - 24 * DAY)
    assert {leak.kind for leak in leaks} == {"burst", "slow"}
    for leak in leaks:
        # The last full night of the leak, and the mean of some nights after its repair.
        during = loss[leak.district_id, (leak.end - 2 * DAY).date()]
        after = sorted(loss[leak.district_id, (leak.end + n * DAY).date()] for n in range(1, 6))[2]
        grown = leak.litres_per_hour if leak.kind == "burst" else 0.5 * leak.litres_per_hour
        assert during - after > 0.7 * grown - 60, leak


def test_nearly_every_day_has_a_leak_worth_an_alert(network):
    days = [datetime(2026, 1, 1, tzinfo=UTC) + n * DAY for n in range(365)]
    running = [
        any(leak.litres_per_hour >= 400 and leak.kind == "burst" for leak in network.planted_leaks(day, day + DAY))
        for day in days
    ]
    assert sum(running) > 350


def test_a_running_tap_is_use_that_never_stops(network):
    tap = network.running_taps(UNTIL - 20 * DAY, UNTIL - 5 * DAY)[0]
    rows = exact_flows.meter_hours(network, max(tap.start + HOUR, UNTIL - 30 * DAY), tap.end)
    least = min(row["litres"] for row in rows.to_pylist() if row["meter_id"] == tap.meter_id)
    assert least >= tap.litres_per_hour - 0.01


def test_a_history_has_the_columns_and_keys_of_the_tables(network):
    start = UNTIL - 3 * DAY
    tables = {
        METER_HOURS: exact_flows.meter_hours(network, start, UNTIL),
        DISTRICT_HOURS: exact_flows.district_hours(network, start, UNTIL),
        DISTRICT_NIGHTS: exact_flows.district_nights(network, start, UNTIL),
    }
    assert tables[METER_HOURS].num_rows == 72 * len(network.meters)
    assert tables[DISTRICT_HOURS].num_rows == 72 * 8
    # The span ends within the window of its last night, so that night is incomplete.
    assert tables[DISTRICT_NIGHTS].num_rows == 2 * 8
    assert all(tables[DISTRICT_NIGHTS]["complete"].to_pylist())


def test_a_history_is_sent_completely_up_to_this_hour():
    class Producer:
        sent: list[bytes | None] = []  # noqa: RUF012

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def send(self, topic, *, key, value):
            assert topic == METER_READINGS.name
            self.sent.append(value)

    counts = send_history(1, HOUR, seed=1, faults=NO_FAULTS, make_producer=Producer)  # type: ignore[arg-type]
    moments = sorted(json.loads(value)["read_at"] for value in Producer.sent)
    assert len(moments) == counts["readings"]
    now = datetime.now(UTC)
    assert now - 2 * HOUR < datetime.fromisoformat(moments[-1]) < now
    assert datetime.fromisoformat(moments[0]) < now - DAY + HOUR


@pytest.mark.parametrize("interval", [timedelta(0), timedelta(minutes=7), timedelta(days=2)])
def test_an_interval_that_does_not_divide_a_day_is_refused(network, interval: timedelta):
    with pytest.raises(ValueError, match="interval"):
        readings(network, interval=interval)


def test_a_time_outside_of_the_simulated_years_is_refused(network):
    with pytest.raises(ValueError, match="goes from 2024-01-01"):
        network.counter("M-900001", datetime(2050, 1, 1, tzinfo=UTC))
