-- How many customers' meters of each district are known on each of the days: meters that were read on that day or in
-- the $known_days days before.
-- Tables: meter_days. Parameters: $days (timestamps, midnight UTC), $inlets (district_id, meter_id), $known_days.
WITH days AS (
    SELECT EPOCH_US(wanted) // 86400000000 AS number FROM UNNEST($days) AS listed(wanted)
),
-- For each day, the days on which a reading makes a meter known.
counting AS (
    SELECT days.number, days.number - earlier AS read_on
    FROM days
    CROSS JOIN UNNEST(GENERATE_SERIES(0, $known_days)) AS days_earlier(earlier)
),
seen AS (
    SELECT meter_days.district_id, meter_days.meter_id, counting.number
    FROM meter_days
    INNER JOIN counting
        ON EPOCH_US(meter_days.day) // 86400000000 = counting.read_on
)
SELECT
    seen.district_id,
    CAST(MAKE_TIMESTAMP(seen.number * 86400000000) AS TIMESTAMPTZ) AS day,
    CAST(COUNT(DISTINCT seen.meter_id) AS INTEGER) AS meters
FROM seen
WHERE seen.meter_id NOT IN (SELECT inlet.meter_id FROM UNNEST($inlets) AS listed(inlet))
GROUP BY seen.district_id, seen.number
