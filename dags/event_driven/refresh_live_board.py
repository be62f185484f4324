"""
### Refresh the live board

A message on `alerts.raised` refreshes the tile of its district on the board under **Live board**.

**Starts** with a message (Airflow's stock `AssetWatcher` and `MessageQueueTrigger`), and every ten minutes, because
alerts that are a day old leave the board without a message. The event names the tile; the tile's content is read from
the database.

**Makes** rows in `board_tiles`, which the board polls.

**When it fails** nothing is lost. The next run, for any tile, refreshes all outdated tiles; until then the board marks
them as outdated.

This is the only Dag on the stock trigger, which is sufficient because a lost event does no harm here. The stock trigger
commits an offset before its event is stored, and Airflow coalesces events that arrive while an earlier event waits. The
trigger ends and is recreated after every message, which limits it to half a message per second. It also takes more than
a second to import, in each of this Dag's tasks. Where every message counts, see `raise_alerts`.
"""

from datetime import timedelta

from airflow.providers.common.messaging.triggers.msg_queue import MessageQueueTrigger
from airflow.sdk import Asset, AssetWatcher, CronTriggerTimetable, dag, task

from include.streams import joined_or_at, task_defaults
from include.water.assets import LIVE_BOARD
from include.water.topics import ALERTS_RAISED

TRIGGER = MessageQueueTrigger(
    scheme="kafka",
    topics=[ALERTS_RAISED.name],
    # A connection of its own: the stock trigger takes its consumer group from the connection.
    kafka_config_id="kafka_live_board",
    # By name: the function runs in the triggerer, which does not load Dag files.
    apply_function="include.water.dashboards.events.tile_of",
)
# Declared here and not with the other assets: the import of the trigger would slow down every Dag file.
ALERTS = Asset(LIVE_BOARD.name, watchers=[AssetWatcher(name=LIVE_BOARD.name, trigger=TRIGGER)])


@dag(
    schedule=joined_or_at(CronTriggerTimetable("*/10 * * * *", timezone="UTC"), ALERTS),
    catchup=False,
    # Events that arrive in the meantime are coalesced into one run, which refreshes every tile that is behind.
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=10),
    default_args=task_defaults(timedelta(minutes=1), reported=False, retries=2, retry_delay=timedelta(seconds=5)),
    tags=["event-driven", "kafka", "dashboards"],
    doc_md=__doc__,
)
def refresh_live_board():
    @task
    def refresh(triggering_asset_events=None) -> list[str]:
        from include.streams import begin
        from include.water.dashboards.events import named_tiles
        from include.water.dashboards.tiles import refresh

        events = [event for events in triggering_asset_events.values() for event in events]
        with begin() as connection:
            return refresh(connection, named_tiles(event.extra.get("payload") for event in events))

    refresh()


refresh_live_board()
