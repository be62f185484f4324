-- The meters that were read on each of the days (UTC), by district.
-- Tables: meter_hours. Parameters: $days (timestamps, midnight UTC).
WITH days AS (
    SELECT EPOCH_US(wanted) // 86400000000 AS number FROM UNNEST($days) AS listed(wanted)
),
-- One row per meter and day first: the later steps are faster with fewer rows.
read_meters AS (
    SELECT DISTINCT
        meter_hours.meter_id,
        meter_hours.district_id,
        EPOCH_US(meter_hours.hour) // 86400000000 AS day_number
    FROM meter_hours
    WHERE meter_hours.readings > 0
)
SELECT
    read_meters.meter_id,
    read_meters.district_id,
    CAST(MAKE_TIMESTAMP(read_meters.day_number * 86400000000) AS TIMESTAMPTZ) AS day
FROM read_meters
WHERE read_meters.day_number IN (SELECT number FROM days)
ORDER BY day NULLS FIRST, meter_id NULLS FIRST, district_id NULLS FIRST
