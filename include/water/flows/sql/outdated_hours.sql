-- The hours of the days whose district flows were computed with another number of known meters than there are now.
-- Tables: district_hours, known_meters. Parameters: $days (timestamps, midnight UTC).
SELECT DISTINCT district_hours.hour
FROM district_hours
LEFT JOIN known_meters
    ON district_hours.district_id = known_meters.district_id
    AND EPOCH_US(district_hours.hour) // 86400000000 = EPOCH_US(known_meters.day) // 86400000000
WHERE district_hours.meters_known <> COALESCE(known_meters.meters, 0)
    AND EPOCH_US(district_hours.hour) // 86400000000 IN (
        SELECT EPOCH_US(wanted) // 86400000000 FROM UNNEST($days) AS days(wanted)
    )
