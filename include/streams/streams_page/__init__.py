"""The Streams page in the Airflow UI: consumers, landed topics and alarms of any project.

`background` reads services without blocking a request. `database` and `services` read; `views` builds the documents
that the browser shows; `app` serves them.
"""
