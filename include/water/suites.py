"""Rules about whole runs of readings: what no single reading shows.

A rule that stops a run stops the lane until somebody has looked, so the bounds are wide: they are to find a source that
is broken (silent, in other units, repeating itself), not an odd night. Runs come in every size, from one minute of
readings to a month of them; a rule that would mean nothing in a small one is not measured there.
"""

from __future__ import annotations

from include.validators.rules import PERCENT, Measure, Recent, SetSuite, Severity, from_contract, one_of
from include.water.sites import DISTRICTS
from include.water.topics import MeterReading

# Fewer say little: a single meter that was replaced is a large share of ten.
_ENOUGH_ROWS = 100
_ENOUGH_METERS = 50
# Households that send every minute are either a test or a fault; the contract with the network's operator is hourly.
_MOST_READINGS_AN_HOUR = 60

_INLETS = ", ".join(f"'{district.inlet_meter_id}'" for district in DISTRICTS.values())

# Against the time of arrival in Kafka, not against now: a run that is repeated, or catches up after an outage, finds
# the same as on time. That the lane itself is behind is the alarm `lag`.
_TIMES = f"""
select
    count(*) - count(distinct event_id) as repeated,
    case when count(*) >= {_ENOUGH_ROWS} then (epoch(max(kafka_timestamp)) - epoch(max(read_at))) / 3600 end
        as newest_age_hours,
    case when count(*) >= {_ENOUGH_ROWS} then avg((read_at > kafka_timestamp + interval 1 hour)::int) end
        as share_ahead
from run
"""

# Only hours that the run covers whole: those between the first and the last tenth of its readings. Late ones, which
# touch many hours with few readings each, lie outside.
_VOLUME = """
with core as (
    select date_trunc('hour', quantile_disc(read_at, 0.1)) + interval 1 hour as first,
           date_trunc('hour', quantile_disc(read_at, 0.9)) - interval 1 hour as last
    from run
),
per_meter as (
    select date_trunc('hour', read_at) as hour, meter_id, count(*) as readings from run group by all
),
per_hour as (
    select hour, count(*) as meters, sum(readings) as readings
    from per_meter, core where hour between core.first and core.last group by hour
)
select (select median(meters) from per_hour) as meters_an_hour,
       (select median(readings / meters) from per_hour) as readings_a_meter_and_hour,
       (select max(readings) from per_meter) as most_readings_of_a_meter
"""

_FLOWS = f"""
with pairs as (
    select meter_id, read_at::date as day,
           litres_total - lag(litres_total) over meter as litres,
           (epoch(read_at) - epoch(lag(read_at) over meter)) / 3600 as hours
    from run window meter as (partition by meter_id order by read_at, kafka_offset)
),
known as (select * from pairs where hours > 0.01 and hours <= 3),
-- By day: over months, many a meter is replaced and starts again.
days as (
    select count(distinct meter_id) as meters, count(distinct meter_id) filter (litres < 0) as falling
    from known group by day
),
households as (select litres / hours as flow from known where litres >= 0 and meter_id not in ({_INLETS}))
select (select max(falling / meters) from days where meters >= {_ENOUGH_METERS}) as share_falling,
       (select case when count(*) >= {_ENOUGH_ROWS} then median(flow) end from households) as flow_median,
       (select case when count(*) >= {_ENOUGH_ROWS} then quantile_cont(flow, 0.95) end from households) as flow_high
"""


def meter_readings() -> SetSuite:
    """The suite of the clean table of `meter.readings`."""
    return SetSuite(
        name="meter_readings",
        description="Counter states of all water meters: one run of the standard lane, after duplicates were removed.",
        columns=(*MeterReading.model_fields, "event_id", "kafka_offset", "kafka_timestamp"),
        rules=(
            *from_contract(MeterReading),
            one_of("district_id", DISTRICTS, expected="a district of the network", mostly=0.99),
        ),
        queries=(_TIMES, _VOLUME, _FLOWS),
        measures=(
            Measure("repeated", "readings that are there twice", maximum=0),
            Measure("dead_lettered_share", "messages that break the contract", PERCENT, maximum=0.5),
            Measure(
                "dead_lettered_share",
                "few messages break the contract",
                PERCENT,
                maximum=0.05,
                severity=Severity.warning,
            ),
            Measure("duplicate_share", "few messages are duplicates", PERCENT, maximum=0.2, severity=Severity.warning),
            # A history that is loaded at once is allowed to be old, if earlier runs were: three days beyond them.
            Measure(
                "newest_age_hours",
                "age of the newest reading on arrival",
                "hours",
                recent=Recent(below=None, above=1, margin=72),
            ),
            Measure("share_ahead", "readings from the future", PERCENT, maximum=0.01, severity=Severity.warning),
            Measure("meters_an_hour", "meters that report in an hour", recent=Recent(above=None)),
            Measure("readings_a_meter_and_hour", "readings of a meter in an hour", recent=Recent()),
            Measure(
                "most_readings_of_a_meter", "most readings of one meter in an hour", maximum=_MOST_READINGS_AN_HOUR
            ),
            Measure("share_falling", "meters whose counter falls in a day", PERCENT, maximum=0.05),
            # Between night and morning the flow of a household grows far more than fivefold: hence the margins. Other
            # units are a factor of a thousand.
            Measure("flow_median", "median flow of households", "l/h", recent=Recent(below=None, margin=100)),
            Measure("flow_high", "95th percentile of households' flow", "l/h", recent=Recent(below=None, margin=500)),
        ),
    )
