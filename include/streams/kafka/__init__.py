"""Kafka with Airflow, without loss: lag starts a run, the run claims offset ranges, and a task handles each range.

Read in this order: `consumers` (the declarations), `trigger` (lag -> Dag run), `claims` (run -> offset ranges),
`reading` (offset range -> messages), `handling` (message -> effect, once), `dead_letters` (messages that break their
contract).
"""
