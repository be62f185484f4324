-- The flow of each district at night, when people use least.
-- Tables: district_hours. Parameters: $night_hours (night: date, hour: timestamp), all hours of the nights' windows.
WITH hours AS (
    SELECT listed.night, EPOCH_US(listed.hour) AS hour FROM UNNEST($night_hours) AS hours_of_nights(listed)
),
nights AS (
    SELECT night, COUNT(*) AS hours FROM hours GROUP BY night
),
flows AS (
    SELECT
        district_hours.district_id,
        hours.night,
        district_hours.inlet_litres,
        CASE
            WHEN district_hours.loss_litres IS NOT NULL
            THEN CAST(ROUND(district_hours.metered_litres * 1000) AS BIGINT)
        END AS used_millilitres,
        CAST(ROUND(district_hours.loss_litres * 1000) AS BIGINT) AS lost_millilitres
    FROM district_hours
    INNER JOIN hours
        ON EPOCH_US(district_hours.hour) = hours.hour
)
SELECT
    flows.district_id,
    flows.night,
    MIN(flows.inlet_litres) AS min_night_flow_lph,
    ROUND(CAST(SUM(flows.used_millilitres) AS DOUBLE) / NULLIF(COUNT(flows.used_millilitres), 0) / 1000, 3)
        AS metered_night_flow_lph,
    ROUND(CAST(SUM(flows.lost_millilitres) AS DOUBLE) / NULLIF(COUNT(flows.lost_millilitres), 0) / 1000, 3)
        AS night_loss_lph,
    CAST(COUNT(flows.inlet_litres) AS INTEGER) AS hours,
    COUNT(flows.inlet_litres) = MAX(nights.hours) AS complete
FROM flows
INNER JOIN nights
    ON flows.night = nights.night
GROUP BY flows.district_id, flows.night
ORDER BY night NULLS FIRST, district_id NULLS FIRST
