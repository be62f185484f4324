"""Pages in the Airflow UI: served by the api-server to logged-in users, under a strict content security policy.

A page is a folder of static files and one function that reads its data. `plugins/` declares it to Airflow.
"""
