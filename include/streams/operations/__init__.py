"""The operational database: claims, inbox, outbox and alarms, and the migrations that create their tables.

It is one PostgreSQL database behind one Airflow connection, `operations_db`. Only its rows decide which messages are
handled; Kafka's committed offsets and Airflow's task states only decide when a task checks.
"""
