-- The hours (UTC) whose flow the readings in the offset ranges can change: from the same meter's reading before them to
-- its reading after them, if these are at most $max_gap_us away.
-- A meter's readings in one hour are looked up together: all of them are in this hour.
-- Tables: readings. Parameters: $ranges (kafka_partition, first_offset, end_offset (exclusive), kafka_log), $max_gap_us,
-- $max_gap_hours. A kafka_log of null matches any log; so does a reading without a log.
WITH claimed_readings AS (
    SELECT
        readings.meter_id,
        EPOCH_US(readings.read_at) // 3600000000 AS hour_number,
        MIN(EPOCH_US(readings.read_at)) AS first_us,
        MAX(EPOCH_US(readings.read_at)) AS last_us
    FROM readings
    INNER JOIN UNNEST($ranges) AS ranges(claimed)
        ON readings.kafka_partition = claimed.kafka_partition
        AND readings.kafka_offset >= claimed.first_offset
        AND readings.kafka_offset < claimed.end_offset
        AND COALESCE(readings.kafka_log = CAST(claimed.kafka_log AS VARCHAR), TRUE)
    GROUP BY readings.meter_id, EPOCH_US(readings.read_at) // 3600000000
),
near AS (
    SELECT meter_id, hour_number, first_us, last_us, hour_number + away AS near_hour
    FROM claimed_readings
    CROSS JOIN UNNEST(GENERATE_SERIES(-$max_gap_hours, $max_gap_hours)) AS hours_away(away)
),
bounds AS (
    SELECT
        near.meter_id,
        near.hour_number,
        MAX(
            CASE
                WHEN EPOCH_US(readings.read_at) < near.first_us AND EPOCH_US(readings.read_at) >= near.first_us - $max_gap_us
                THEN EPOCH_US(readings.read_at)
            END
        ) // 3600000000 AS first_hour,
        MIN(
            CASE
                WHEN EPOCH_US(readings.read_at) > near.last_us AND EPOCH_US(readings.read_at) <= near.last_us + $max_gap_us
                THEN EPOCH_US(readings.read_at)
            END
        ) // 3600000000 AS last_hour
    FROM near
    INNER JOIN readings
        ON near.meter_id = readings.meter_id AND near.near_hour = EPOCH_US(readings.read_at) // 3600000000
    GROUP BY near.meter_id, near.hour_number
),
reached AS (
    SELECT DISTINCT bounds.hour_number + away AS hour_number
    FROM bounds
    CROSS JOIN UNNEST(GENERATE_SERIES(-$max_gap_hours, $max_gap_hours)) AS hours_away(away)
    WHERE bounds.hour_number + away >= COALESCE(bounds.first_hour, bounds.hour_number)
        AND bounds.hour_number + away <= COALESCE(bounds.last_hour, bounds.hour_number)
)
SELECT CAST(MAKE_TIMESTAMP(hour_number * 3600000000) AS TIMESTAMPTZ) AS hour FROM reached
