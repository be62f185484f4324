"""Schedules of Dags that assets start: all events that arrive before a run exists coalesce into that run.

An event of this project only says that there is work; the run finds the work in Kafka or in tables. So events that
arrive while a run is queued need no separate run. Airflow up to 3.3 always coalesces them. Airflow 3.4 creates a run
for each event, unless the schedule has `batch_asset_events=True` or the deployment sets the option
`batch_asset_events` of `[scheduler]`. The schedules here set it, so that no Dag depends on a setting of its deployment.
"""

import inspect
from typing import Any

from airflow.sdk import AssetOrTimeSchedule, PartitionedAssetTimetable
from airflow.sdk.bases.timetable import BaseTimetable
from airflow.sdk.definitions.asset import Asset, AssetAny, BaseAsset
from airflow.sdk.definitions.timetables.assets import AssetTriggeredTimetable

_JOIN = "batch_asset_events"
# Airflow up to 3.3 has no such argument and always coalesces.
_HAS_CHOICE = _JOIN in inspect.signature(AssetTriggeredTimetable).parameters
_JOINED: dict[str, Any] = {_JOIN: True} if _HAS_CHOICE else {}


def joined(*assets: Asset) -> AssetTriggeredTimetable:
    """Start a run when any of the assets is updated; all events that wait at that time coalesce into one run.

    Args:
        assets: At least one asset.

    Returns:
        A timetable for `schedule=`.
    """
    return AssetTriggeredTimetable(_any_of(assets), **_JOINED)


def joined_by_key(asset: Asset) -> PartitionedAssetTimetable:
    """Start a run for each partition key of the asset; events of one key coalesce until its run exists.

    Args:
        asset: An asset whose events have partition keys.

    Returns:
        A timetable for `schedule=`.
    """
    return PartitionedAssetTimetable(assets=asset, **_JOINED)


def joined_or_at(timetable: BaseTimetable, *assets: Asset) -> AssetOrTimeSchedule:
    """Start a run as `joined` does, and also at the times of the timetable.

    Args:
        timetable: The times.
        assets: At least one asset.

    Returns:
        A timetable for `schedule=`.
    """
    return AssetOrTimeSchedule(timetable=timetable, assets=_any_of(assets), **_JOINED)


def _any_of(assets: tuple[Asset, ...]) -> BaseAsset:
    return assets[0] if len(assets) == 1 else AssetAny(*assets)
