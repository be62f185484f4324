-- The meters that were read on each of the days (UTC), by district.
-- $days: timestamps, midnight
SELECT DISTINCT
    meter_hours.meter_id,
    meter_hours.district_id,
    CAST(MAKE_TIMESTAMP(EPOCH_US(meter_hours.hour) // 86400000000 * 86400000000) AS TIMESTAMPTZ) AS day
FROM meter_hours
WHERE meter_hours.readings > 0
    AND EPOCH_US(meter_hours.hour) // 86400000000 IN (
        SELECT EPOCH_US(wanted) // 86400000000 FROM UNNEST($days) AS days(wanted)
    )
ORDER BY day NULLS FIRST, meter_id NULLS FIRST, district_id NULLS FIRST
