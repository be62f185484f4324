-- The flow through each meter in each of the hours.
-- A segment is the time between two neighboring readings of a meter. Its flow is known if the segment is at most
-- $max_gap_us long and the counter has not fallen. Then the counter is interpolated at the beginning and end of each
-- hour. The flow of an hour is known if known segments cover the whole hour. Times are in microseconds and their sums
-- are integers, so the result does not depend on the order of the rows.
-- Tables: readings. Parameters: $hours (timestamps), $max_gap_us, $max_gap_hours, $expected_readings (of a meter per
-- hour).
WITH spans AS (
    SELECT EPOCH_US(MIN(wanted)) AS first_us, EPOCH_US(MAX(wanted)) + 3600000000 AS last_us
    FROM UNNEST($hours) AS hours(wanted)
),
-- Before and after the span of all hours, only a meter's nearest reading can affect them.
nearest AS (
    SELECT
        readings.meter_id,
        MAX(CASE WHEN EPOCH_US(readings.read_at) < spans.first_us THEN readings.read_at END) AS before,
        MIN(CASE WHEN EPOCH_US(readings.read_at) >= spans.last_us THEN readings.read_at END) AS after
    FROM readings
    CROSS JOIN spans
    WHERE EPOCH_US(readings.read_at) < spans.first_us OR EPOCH_US(readings.read_at) >= spans.last_us
    GROUP BY readings.meter_id
),
relevant AS (
    SELECT readings.meter_id, readings.district_id, readings.read_at, readings.litres_total
    FROM readings
    CROSS JOIN spans
    WHERE EPOCH_US(readings.read_at) >= spans.first_us AND EPOCH_US(readings.read_at) < spans.last_us
    UNION ALL
    SELECT readings.meter_id, readings.district_id, readings.read_at, readings.litres_total
    FROM readings
    CROSS JOIN spans
    INNER JOIN nearest
        ON readings.meter_id = nearest.meter_id
        AND (readings.read_at = nearest.before OR readings.read_at = nearest.after)
    -- Redundant, but faster: the join then skips the readings inside the span.
    WHERE EPOCH_US(readings.read_at) < spans.first_us OR EPOCH_US(readings.read_at) >= spans.last_us
),
ordered AS (
    SELECT
        meter_id,
        district_id,
        EPOCH_US(read_at) AS started,
        litres_total AS first_litres,
        LEAD(EPOCH_US(read_at)) OVER neighbours AS ended,
        LEAD(litres_total) OVER neighbours AS last_litres
    FROM relevant
    WINDOW neighbours AS (PARTITION BY meter_id ORDER BY read_at NULLS FIRST, litres_total NULLS FIRST)
),
segments AS (
    SELECT
        meter_id,
        district_id,
        started,
        first_litres,
        ended,
        last_litres,
        started // 3600000000 AS first_hour,
        -- Of two readings at the same time, the first has a segment of length 0: it does not count, and covers nothing.
        CASE WHEN ended = started THEN 0 ELSE 1 END AS readings,
        COALESCE(ended > started AND ended - started <= $max_gap_us AND last_litres >= first_litres, FALSE) AS known
    FROM ordered
),
pieces AS (
    SELECT
        meter_id,
        district_id,
        started,
        first_hour + later AS hour_number,
        CASE WHEN later = 0 THEN readings ELSE 0 END AS readings,
        CASE
            WHEN known
            THEN LEAST(ended, (first_hour + later + 1) * 3600000000) - GREATEST(started, (first_hour + later) * 3600000000)
            ELSE 0
        END AS covered,
        CASE
            WHEN known AND started <= (first_hour + later) * 3600000000
            THEN first_litres
                + (last_litres - first_litres)
                * (CAST((first_hour + later) * 3600000000 - started AS DOUBLE) / CAST(ended - started AS DOUBLE))
        END AS litres_at_beginning,
        CASE
            WHEN known AND ended >= (first_hour + later + 1) * 3600000000
            THEN first_litres
                + (last_litres - first_litres)
                * (CAST((first_hour + later + 1) * 3600000000 - started AS DOUBLE) / CAST(ended - started AS DOUBLE))
        END AS litres_at_end
    FROM segments
    CROSS JOIN UNNEST(GENERATE_SERIES(0, $max_gap_hours)) AS hours_later(later)
    WHERE (later = 0 OR (known AND (first_hour + later) * 3600000000 < ended))
        AND first_hour + later IN (SELECT EPOCH_US(wanted) // 3600000000 FROM UNNEST($hours) AS hours(wanted))
)
SELECT
    meter_id,
    ARG_MAX(district_id, started) AS district_id,
    CAST(MAKE_TIMESTAMP(hour_number * 3600000000) AS TIMESTAMPTZ) AS hour,
    CASE
        WHEN SUM(covered) = 3600000000
        THEN ROUND(MAX(litres_at_end) - MAX(litres_at_beginning), 3)
    END AS litres,
    CAST(SUM(readings) AS INTEGER) AS readings,
    CAST($expected_readings AS INTEGER) AS expected_readings
FROM pieces
GROUP BY meter_id, hour_number
ORDER BY hour NULLS FIRST, meter_id NULLS FIRST
