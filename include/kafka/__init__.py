"""Kafka with Airflow, nothing lost: lag starts a run, a run claims offset ranges, a task handles them.

Read in this order: `consumers` (what is declared), `trigger` (lag -> Dag run), `claims` (run -> offset ranges),
`reading` (offset range -> messages), `handling` (message -> effect, once), `dead_letters` (what breaks its contract).
"""
