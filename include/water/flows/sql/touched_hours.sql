-- The hours (UTC) of the readings in the offset ranges.
-- Tables: readings. Parameters: $ranges (kafka_partition, first_offset, end_offset (exclusive), kafka_log). A kafka_log
-- of null matches any log; so does a reading without a log.
WITH touched AS (
    SELECT DISTINCT EPOCH_US(readings.read_at) // 3600000000 AS hour_number
    FROM readings
    INNER JOIN UNNEST($ranges) AS ranges(claimed)
        ON readings.kafka_partition = claimed.kafka_partition
        AND readings.kafka_offset >= claimed.first_offset
        AND readings.kafka_offset < claimed.end_offset
        AND COALESCE(readings.kafka_log = CAST(claimed.kafka_log AS VARCHAR), TRUE)
)
SELECT CAST(MAKE_TIMESTAMP(hour_number * 3600000000) AS TIMESTAMPTZ) AS hour FROM touched
