"""The assets of the shop's Dags. Not in `tests/e2e/shop.py`, which the tests import without Airflow."""

from airflow.sdk import Asset

from include.streams import lag_watcher
from tests.e2e.shop import BOOK_ORDERS, PACK_PARCELS

ORDERS_WAITING = Asset("e2e_orders_waiting", watchers=[lag_watcher(BOOK_ORDERS)])
PARCELS_WAITING = Asset("e2e_parcels_waiting", watchers=[lag_watcher(PACK_PARCELS)])
PARCEL = Asset("e2e_parcel")
SCANS_COUNTED = Asset("e2e_scans_counted")
