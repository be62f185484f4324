"""Rules for whole runs of readings: they find problems that a single reading does not show.

A rule that stops a run stops the lane until a person has looked, so the bounds are wide. The rules find that most of
the network is broken (silent, in other units, repeating itself). They must not stop for an odd night or a few odd
meters; `_METERS` raises alarms for those. A run can have any size, from one minute of readings to a month. A rule that
says nothing about a small run is not applied to it.
"""

from __future__ import annotations

from include.streams.validators.rules import PERCENT, Measure, Recent, SetSuite, Severity, SourceRule, from_contract
from include.water.alarm_kinds import WaterAlarmKind
from include.water.sites import DISTRICTS
from include.water.topics import MeterReading

# A run of fewer says nothing about the network: among ten meters, one replaced meter is 10%, and a run can consist of
# what one meter has kept for a week.
_ENOUGH_METERS = 50
# A meter that sends every minute is either a test or a fault; the contract with the network's operator is hourly.
_MOST_READINGS_AN_HOUR = 60

_DISTRICTS = ", ".join(f"'{district_id}'" for district_id in DISTRICTS)
_INLETS = ", ".join(f"'{district.inlet_meter_id}'" for district in DISTRICTS.values())

# Times are compared with the time of arrival in Kafka, not with the current time. So a run that is repeated, or that
# catches up after an outage, gets the same result as a run in time. If the lane itself is behind, the alarm `lag` shows
# it. A meter whose clock runs ahead, or a producer that sets its own record timestamps, must not hide that the other
# readings are old.
_TIMES = f"""
with arrived as (select *, quantile_disc(kafka_timestamp, 0.99) over () as last_arrival from run)
select
    count(*) - count(distinct event_id) as repeated,
    case when count(distinct meter_id) >= {_ENOUGH_METERS} then (epoch(any_value(last_arrival)) - epoch(
        max(read_at) filter (read_at <= least(kafka_timestamp, last_arrival) + interval 1 hour)
    )) / 3600 end as newest_age_hours,
    case when count(distinct meter_id) >= {_ENOUGH_METERS}
        then avg((read_at > kafka_timestamp + interval 1 hour)::int) end as share_ahead
from arrived
"""

# Only hours that the run covers completely: after the first hour and before the last hour of most meters. Each meter
# has one vote, however much it sends: late readings and random dates touch many hours with few readings each. In a run
# of few meters, only readings that arrived within an hour count: if these cover hours, most of the network is silent.
# The rest is what a few meters had kept, while the others are in other runs.
_VOLUME = f"""
with per_meter as (
    select date_trunc('hour', read_at) as hour, meter_id, count(*) as readings from run
    where (select count(distinct meter_id) from run) >= {_ENOUGH_METERS}
        or kafka_timestamp between read_at and read_at + interval 1 hour
    group by all
),
spans as (select min(hour) as first, max(hour) as last from per_meter group by meter_id),
core as (
    select quantile_disc(first, 0.5) + interval 1 hour as first, quantile_disc(last, 0.5) - interval 1 hour as last
    from spans
),
whole as (select per_meter.* from per_meter, core where hour between core.first and core.last),
per_hour as (select hour, count(*) as meters from whole group by hour)
select (select median(meters) from per_hour) as meters_an_hour,
       (select median(readings) from whole) as readings_a_meter_and_hour
"""

# Each household has one vote here too: otherwise a household that sends every second would dominate the run.
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
households as (
    select count(*) as flows, median(litres / hours) as usual, quantile_cont(litres / hours, 0.95) as high
    from known where litres >= 0 and meter_id not in ({_INLETS}) group by meter_id
),
districts as (
    select count(distinct meter_id) as meters,
           count(distinct meter_id) filter (district_id not in ({_DISTRICTS})) as elsewhere
    from run
)
select (select max(falling / meters) from days where meters >= {_ENOUGH_METERS}) as share_falling,
       (select case when count(*) >= {_ENOUGH_METERS} then median(usual) end from households) as flow_median,
       (select case when count(*) >= {_ENOUGH_METERS} then median(high) end from households) as flow_high,
       (select elsewhere / meters from districts where meters >= {_ENOUGH_METERS}) as share_elsewhere
"""

# A fault of one meter concerns only that meter: its rows continue, and an alarm names it.
_METERS = (
    SourceRule(
        kind=WaterAlarmKind.meter_sends_too_often,
        title="meters that send too often",
        expected=f"at most {_MOST_READINGS_AN_HOUR} readings of a meter in an hour",
        query=f"""
            with hours as (
                select meter_id, count(*) as readings from run group by meter_id, date_trunc('hour', read_at)
            )
            select meter_id as source, max(readings) as found, max(readings) > {_MOST_READINGS_AN_HOUR} as breaks
            from hours group by meter_id
        """,
        unit="readings in an hour",
        remedy="check the meter's interval, and the gateway that sends its readings",
    ),
    SourceRule(
        kind=WaterAlarmKind.meter_clock_ahead,
        title="meters whose clock runs ahead",
        expected="readings at most an hour ahead of their arrival",
        query="""
            with ahead as (
                select
                    meter_id,
                    (epoch(read_at) - epoch(least(coalesce(kafka_timestamp, now()), now()))) / 3600 as hours
                from run
            )
            select meter_id as source, max(hours) as found, max(hours) > 1 as breaks from ahead group by meter_id
        """,
        unit="hours ahead",
        remedy="set the meter's clock. Reports and models leave readings out until their time has come",
    ),
    SourceRule(
        kind=WaterAlarmKind.meter_in_unknown_district,
        title="meters that name an unknown district",
        expected="a district of the network",
        query=f"""
            select meter_id as source, count(*) filter (district_id not in ({_DISTRICTS})) as found,
                found > 0 as breaks
            from run group by meter_id
        """,
        unit="readings",
        remedy="correct the meter's configuration, or add the district to include/water/sites.py",
    ),
)


def meter_readings() -> SetSuite:
    """The suite of the clean table of `meter.readings`."""
    return SetSuite(
        name="meter_readings",
        description="Counter states of all water meters: one run of the standard lane, after duplicates were removed.",
        columns=(*MeterReading.model_fields, "event_id", "kafka_offset", "kafka_timestamp"),
        rules=from_contract(MeterReading),
        sources=_METERS,
        queries=(_TIMES, _VOLUME, _FLOWS),
        measures=(
            Measure("repeated", "readings that are there twice", maximum=0),
            # Never a reason to stop: the good rows continue, and the alarm `many_dead_letters` has the count and the
            # reason.
            Measure(
                "dead_lettered_share",
                "few messages break the contract",
                PERCENT,
                maximum=0.05,
                severity=Severity.warning,
            ),
            Measure("duplicate_share", "few messages are duplicates", PERCENT, maximum=0.2, severity=Severity.warning),
            # While a history is loaded, all runs are old: a run may be three days older than the runs before it.
            Measure(
                "newest_age_hours",
                "age of the newest reading on arrival",
                "hours",
                recent=Recent(below=None, above=1, margin=72),
            ),
            Measure("share_ahead", "readings from the future", PERCENT, maximum=0.01, severity=Severity.warning),
            Measure("meters_an_hour", "meters that report in an hour", recent=Recent(above=None)),
            Measure("readings_a_meter_and_hour", "readings of a meter in an hour", recent=Recent()),
            Measure("share_elsewhere", "meters of an unknown district", PERCENT, maximum=0.2),
            Measure("share_falling", "meters whose counter falls in a day", PERCENT, maximum=0.05),
            # Between night and morning a household's flow grows far more than fivefold, so the margins are large. Wrong
            # units would be a factor of a thousand.
            Measure("flow_median", "median flow of households", "l/h", recent=Recent(below=None, margin=100)),
            Measure("flow_high", "95th percentile of households' flow", "l/h", recent=Recent(below=None, margin=500)),
        ),
    )
