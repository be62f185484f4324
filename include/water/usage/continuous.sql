-- Continuous flows: at least $min_hours consecutive known hours with at least $min_litres in each.
-- A flow is not running any more if its meter has been silent since $heard_since. `run`: an hour minus its row number is
-- the same value for all consecutive hours.
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
    -- Running: in the meter's last known hour, unless the meter has been silent for too long.
    max(hour) + interval 1 hour = any_value(ends.known_until) and max(hour) >= $heard_since as running
from running join ends using (customer_id)
group by customer_id, run
having count(*) >= $min_hours
