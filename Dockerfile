FROM astrocrpublic.azurecr.io/runtime:3.3-8-python-3.12
# A cleared run takes the Dag file of the newest deploy, as it takes include/ of it: a repaired Dag reaches the runs that
# failed. Airflow's default is the file of the run's first try.
ENV AIRFLOW__CORE__RERUN_WITH_LATEST_VERSION=True
# Where a Kafka connection names a callback by its dotted path (oauth_cb, ...), list the path here, separated by commas:
# ENV AIRFLOW__APACHE_KAFKA__CALLBACK_ALLOWLIST=include.tokens.oauth_cb
