"""Every asset and what updates it: the map of what starts what.

    seismic.events, leaks.detected --lag--> ALERT_SOURCES --> raise_alerts

Every Dag file imports this module, so it imports nothing heavy.
"""

from airflow.sdk import Asset

from include.kafka.trigger import lag_watcher
from include.water.consumers import RAISE_ALERTS

ALERT_SOURCES = Asset("alert_sources", watchers=[lag_watcher(RAISE_ALERTS)])
