-- Hours in a row, none of them unknown, in each of which at least $min_litres ran; runs of $min_hours and more.
-- A meter that was not heard since $heard_since runs no more. An hour minus its number among such hours is the same all
-- through a run.
create or replace temp table continuous_flows as
with running as (
    select
        customer_id, hour, litres,
        hour - to_hours(row_number() over (partition by customer_id order by hour)) as run
    from customer_hours
    where litres >= $min_litres
),
ends as (
    select customer_id, max(hour) + interval 1 hour as known_until from customer_hours group by customer_id
)
select
    customer_id, min(hour) as starts_at, max(hour) + interval 1 hour as ends_at, count(*)::integer as hours,
    round(min(litres), 1) as least_litres_per_hour,
    -- It ran in the last hour that is known. What a meter said that has been silent for long says nothing about now.
    max(hour) + interval 1 hour = any_value(ends.known_until) and max(hour) >= $heard_since as running
from running join ends using (customer_id)
group by customer_id, run
having count(*) >= $min_hours
