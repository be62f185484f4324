"""Pages inside the Airflow UI: served by the api-server, for who is logged in, under a strict content security policy.

A page is a folder of static files and one function that reads what they show. `plugins/` declares it to Airflow.
"""
