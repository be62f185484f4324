-- The flow into each district, and what its customers' meters counted, in each of the hours.
-- Liters are summed as whole milliliters: a sum of fractions would depend on the order.
-- Tables: meter_hours; known_meters (district_id, day, meters). Parameters: $hours (timestamps), $inlets (district_id,
-- meter_id), $expected_readings (of a meter per hour), $min_coverage_percent.
WITH inlets AS (
    SELECT inlet.district_id, inlet.meter_id FROM UNNEST($inlets) AS listed(inlet)
),
-- If an inlet meter's readings name another district, neither district has an inflow from it.
flows AS (
    SELECT
        meter_hours.district_id,
        EPOCH_US(meter_hours.hour) // 3600000000 AS hour_number,
        inlets.meter_id IS NOT NULL AS at_inlet,
        CASE WHEN inlets.district_id = meter_hours.district_id THEN meter_hours.litres END AS inlet_litres,
        CASE WHEN inlets.meter_id IS NULL THEN CAST(ROUND(meter_hours.litres * 1000) AS BIGINT) END AS used_millilitres,
        LEAST(meter_hours.readings, $expected_readings) AS readings
    FROM meter_hours
    LEFT JOIN inlets
        ON meter_hours.meter_id = inlets.meter_id
    WHERE EPOCH_US(meter_hours.hour) IN (SELECT EPOCH_US(wanted) FROM UNNEST($hours) AS hours(wanted))
),
summed AS (
    SELECT
        district_id,
        hour_number,
        MAX(inlet_litres) AS inlet_litres,
        SUM(used_millilitres) AS used_millilitres,
        COUNT(used_millilitres) AS reporting,
        SUM(CASE WHEN at_inlet THEN 0 ELSE readings END) AS readings,
        MAX(CASE WHEN at_inlet THEN readings ELSE 0 END) AS inlet_readings
    FROM flows
    GROUP BY district_id, hour_number
)
SELECT
    summed.district_id,
    CAST(MAKE_TIMESTAMP(summed.hour_number * 3600000000) AS TIMESTAMPTZ) AS hour,
    summed.inlet_litres,
    CAST(summed.used_millilitres AS DOUBLE) / 1000 AS metered_litres,
    CASE
        WHEN summed.reporting > 0 AND summed.reporting * 100 >= COALESCE(known_meters.meters, 0) * $min_coverage_percent
        THEN ROUND(summed.inlet_litres - CAST(summed.used_millilitres AS DOUBLE) / 1000, 3)
    END AS loss_litres,
    CAST(summed.reporting AS INTEGER) AS meters_reporting,
    CAST(COALESCE(known_meters.meters, 0) AS INTEGER) AS meters_known,
    CAST(
        GREATEST(COALESCE(known_meters.meters, 0) * $expected_readings - summed.readings, 0)
        + CASE WHEN inlets.meter_id IS NULL THEN 0 ELSE $expected_readings - summed.inlet_readings END
        AS INTEGER
    ) AS missing_readings
FROM summed
LEFT JOIN known_meters
    ON summed.district_id = known_meters.district_id
    AND summed.hour_number // 24 = EPOCH_US(known_meters.day) // 86400000000
LEFT JOIN inlets
    ON summed.district_id = inlets.district_id
ORDER BY hour NULLS FIRST, district_id NULLS FIRST
