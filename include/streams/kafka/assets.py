"""The library's own asset. Dag files import this module, so it imports nothing heavier than Airflow."""

from airflow.sdk import Asset

from include.streams.kafka.delivery_trigger import outbox_watcher

# Rows of the outbox that wait for delivery.
OUTBOX_DUE = Asset("outbox_due", watchers=[outbox_watcher()])
