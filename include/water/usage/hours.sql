-- The known hours of the customers' meters that the customers may see, each with its local day: one row per meter and
-- hour, also if the meter was moved to another district.
create or replace temp table customer_hours as
select
    customers.customer_id, customers.district_id, customers.household,
    days.day, days.hours, flows.hour, max(flows.litres) as litres
from flows
join customers using (meter_id)
join days on flows.hour >= days.starts_at and flows.hour < days.ends_at
where flows.litres is not null and (customers.since is null or days.day >= customers.since)
group by all
