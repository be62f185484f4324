"""The worker processes of Airflow, from which the processes of tasks are forked."""
