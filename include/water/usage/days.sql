-- Customers' days, each compared with similar households. Tables: customer_hours, continuous_flows, days (day,
-- starts_at, ends_at, hours). Parameters: $min_others, $shown (the days to return).
with sums as (
    select
        customer_id, day, any_value(district_id) as district_id, any_value(household) as household,
        -- Decimals, because a sum of doubles depends on the order: with another last digit, a day is written again.
        round(sum(litres::decimal(18, 3))::double, 1) as litres,
        count(*)::integer as known_hours, any_value(hours) as expected_hours
    from customer_hours
    where list_contains($shown, day)
    group by customer_id, day
),
marked as (
    select
        sums.*,
        known_hours = expected_hours as complete,
        exists (
            select 1
            from continuous_flows as runs
            where runs.customer_id = sums.customer_id and runs.starts_at < days.ends_at and runs.ends_at > days.starts_at
        ) as continuous_flow
    from sums join days using (day)
),
-- Similar households have the same size, and are in the same district; if there are too few, in the whole network. Only
-- complete days count, and only groups with so many others that no single household's usage can be inferred.
in_district as (
    select
        district_id, household, day, count(*) as households,
        quantile_cont(litres, 0.25) as low, quantile_cont(litres, 0.5) as median, quantile_cont(litres, 0.75) as high
    from marked where complete
    group by district_id, household, day
    having count(*) > $min_others
),
in_network as (
    select
        household, day, count(*) as households,
        quantile_cont(litres, 0.25) as low, quantile_cont(litres, 0.5) as median, quantile_cont(litres, 0.75) as high
    from marked where complete
    group by household, day
    having count(*) > $min_others
)
select
    marked.customer_id, marked.day, marked.district_id, marked.household, marked.litres,
    marked.known_hours, marked.expected_hours, marked.complete, marked.continuous_flow,
    case
        when not complete then null
        when in_district.households is not null then 'district'
        when in_network.households is not null then 'network'
    end as peer_group,
    -- Rounded: exact numbers would change with one household.
    case when complete then (coalesce(in_district.households, in_network.households) // 10 * 10)::integer end
        as peer_households,
    case when complete then round(coalesce(in_district.low, in_network.low), -1) end as peer_low,
    case when complete then round(coalesce(in_district.median, in_network.median), -1) end as peer_median,
    case when complete then round(coalesce(in_district.high, in_network.high), -1) end as peer_high
from marked
left join in_district using (district_id, household, day)
left join in_network using (household, day)
order by day, customer_id
