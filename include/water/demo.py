"""The example's part of `make demo`: simulators, connections, and the results to show."""

from include.streams import Demo

DEMO = Demo(
    simulators="include.water.simulators",
    # Days of meter readings that are sent first.
    arguments=("--history-days", "60"),
    feeds={"seismic_feed": ("include.water.simulators", "serve-feed")},
    kafka_connections={
        "kafka_live_board": {
            "group.id": "live_board",
            # The stock trigger joins the group again for every message. With the default, it would skip messages until
            # the new group has committed an offset of the partition.
            "auto.offset.reset": "earliest",
            "enable.auto.commit": "false",
            # A topic that is recreated is found within seconds; the default is five minutes.
            "topic.metadata.refresh.interval.ms": "10000",
        },
        "kafka_earthquakes": {
            "group.id": "earthquakes",
            # With the default, a new group would begin at the end of the topic.
            "auto.offset.reset": "earliest",
            # With the default, the client commits offsets every 5 s, also of records that are not written yet.
            "enable.auto.commit": "false",
        },
    },
    results={
        "operations_db": {
            "alerts": "select 'from ' || source_topic, count(*) from alerts group by 1 order by 1",
            "decisions": """
                select engine || ': ' || action || ', ' || replace(state, '_', ' '), count(*) from decisions
                group by 1 order by 1
            """,
            "tiles of the live board": "select 'refreshed', count(*) from board_tiles",
            "leaks": """
                select case when source_event_id is null then 'nights of leaks that are known'
                    else 'found in batch, an alert of the event lane' end, count(*)
                from leaks left join alerts on source_event_id = leak_key group by 1
            """,
        },
        "airflow_metadata": {
            "meter readings, in batches": """
                select replace(key, '_', ' '), sum(value::bigint)
                from asset_event join asset on asset.id = asset_id
                cross join json_each_text(asset_event.extra::json)
                where asset.name = 'hourly_flows' and key in ('landed', 'clean', 'dead_lettered', 'duplicates')
                group by 1
            """,
            "leak model": """
                select 'champion ' || (asset_event.extra::json ->> 'version'), count(*)
                from asset_event join asset on asset.id = asset_id where asset.name = 'leak_model' group by 1
            """,
        },
    },
    awaited={
        "a leak found in batch becomes an alert": """
            select count(*) from leaks join alerts on source_event_id = leak_key
        """,
    },
    pages={"live board": "plugin/live-board", "executive report": "plugin/executive-report"},
)
