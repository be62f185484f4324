"""The library's own asset. Every Dag file that is started by an asset imports Airflow, so nothing heavy is added."""

from airflow.sdk import Asset

from include.streams.kafka.delivery_trigger import outbox_watcher

# Rows of the outbox that wait for delivery.
OUTBOX_DUE = Asset("outbox_due", watchers=[outbox_watcher()])
