-- The hours (UTC) in which readings were made that lie in the offset ranges.
-- $ranges: kafka_partition, first_offset, end_offset (exclusive)
SELECT DISTINCT
    DATE_TRUNC('hour', readings.read_at) AS hour
FROM readings
INNER JOIN UNNEST($ranges) AS ranges(claimed)
    ON readings.kafka_partition = claimed.kafka_partition
    AND readings.kafka_offset >= claimed.first_offset
    AND readings.kafka_offset < claimed.end_offset
