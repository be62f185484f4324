FROM astrocrpublic.azurecr.io/runtime:3.3-8-python-3.12
# A cleared run uses the Dag file and include/ of the newest deploy, so that a repair reaches the failed runs. By default,
# Airflow uses the Dag file of the run's first try.
ENV AIRFLOW__CORE__RERUN_WITH_LATEST_VERSION=True
# A Celery worker imports the libraries of tasks once, instead of in each task. AIRFLOW__STREAMS__PRELOAD=False switches
# it off.
ENV AIRFLOW__CELERY__EXTRA_CELERY_CONFIG='{"imports":["include.streams.workers.celery_worker"]}'
# If a Kafka connection names callbacks by dotted paths (oauth_cb, ...), list the paths here, separated by commas:
# ENV AIRFLOW__APACHE_KAFKA__CALLBACK_ALLOWLIST=include.tokens.oauth_cb
