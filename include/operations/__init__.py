"""The operational database: claims, inbox, outbox and alarms, and the migrations that make their tables.

One PostgreSQL database behind one Airflow connection, `operations_db`. It decides what has been done; Kafka's
committed offsets and Airflow's task states only say when to look.
"""
