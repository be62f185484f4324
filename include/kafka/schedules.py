"""Schedules of Dags that assets start: one waiting run takes every event that has come.

An event of this project says that there is something to do, and the run looks for it in Kafka or in tables. So events
that come while a run is queued need no run of their own. Airflow up to 3.3 always joins them. Airflow 3.4 makes a run
for each event, unless the schedule says `batch_asset_events=True` or the whole deployment does
(`[scheduler] batch_asset_events`): a Dag here must not depend on a setting of its deployment.
"""

import inspect
from typing import Any

from airflow.sdk import AssetOrTimeSchedule, PartitionedAssetTimetable
from airflow.sdk.bases.timetable import BaseTimetable
from airflow.sdk.definitions.asset import Asset, AssetAny, BaseAsset
from airflow.sdk.definitions.timetables.assets import AssetTriggeredTimetable

_JOIN = "batch_asset_events"
# Airflow up to 3.3 has no such argument, and joins.
_HAS_CHOICE = _JOIN in inspect.signature(AssetTriggeredTimetable).parameters
_JOINED: dict[str, Any] = {_JOIN: True} if _HAS_CHOICE else {}


def joined(*assets: Asset) -> AssetTriggeredTimetable:
    """Start a run when any of the assets is updated; all events that wait by then are one run.

    Args:
        assets: at least one asset.

    Returns:
        A timetable for `schedule=`.
    """
    return AssetTriggeredTimetable(_any_of(assets), **_JOINED)


def joined_by_key(asset: Asset) -> PartitionedAssetTimetable:
    """Start a run for each partition key of the asset; a key that comes again before its run exists is one run.

    Args:
        asset: an asset whose events have partition keys.

    Returns:
        A timetable for `schedule=`.
    """
    return PartitionedAssetTimetable(assets=asset, **_JOINED)


def joined_or_at(timetable: BaseTimetable, *assets: Asset) -> AssetOrTimeSchedule:
    """Start a run as `joined` does, and at the times of the timetable.

    Args:
        timetable: the times.
        assets: at least one asset.

    Returns:
        A timetable for `schedule=`.
    """
    return AssetOrTimeSchedule(timetable=timetable, assets=_any_of(assets), **_JOINED)


def _any_of(assets: tuple[Asset, ...]) -> BaseAsset:
    return assets[0] if len(assets) == 1 else AssetAny(*assets)
