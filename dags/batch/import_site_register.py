"""
### Import the site register

Sites and customers, as CSV files that somebody else drops below `register/incoming/` in the artifacts bucket, become
rows of the tables `register_sites` and `register_customers`.

**Starts** when there are files: the first task waits in the triggerer, without a worker. A run that has waited for 15
minutes ends as skipped and the next one waits on, so that a run that was cleared gets its turn.

**Makes** for each file: good ones are applied in one transaction and moved below `register/archive/`; bad ones change
nothing and are moved below `register/rejected/`, with their report beside them and an alarm (`file_rejected`). A file
adds rows and replaces them by id; of two files with one id, the one that was uploaded last stands. At most 100 files a
run.

**When it fails** nothing is applied twice: the retry, a cleared run, or the next run finds what is done by the file's
name and generation. Files that no run has finished stay below `register/incoming/`.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.google.cloud.sensors.gcs import GCSObjectsWithPrefixExistenceSensor
from airflow.sdk import dag, task

from include.water.register.layout import INCOMING


@dag(
    schedule="@continuous",
    # Without one, the second run would get the date of the first, and Airflow would never create it.
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # Two runs would list the same files.
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=2),
    default_args={
        "owner": "data-platform",
        "retries": 3,
        "retry_delay": timedelta(seconds=20),
        "retry_exponential_backoff": 2,
        "max_retry_delay": timedelta(minutes=5),
        "execution_timeout": timedelta(minutes=10),
    },
    tags=["batch", "ingest"],
    doc_md=__doc__,
)
def import_site_register():
    wait_for_files = GCSObjectsWithPrefixExistenceSensor(
        task_id="wait_for_files",
        bucket="{{ var.value.get('artifacts_bucket', 'artifacts') }}",
        prefix=INCOMING,
        deferrable=True,
        poke_interval=10,
        timeout=timedelta(minutes=15).total_seconds(),
        soft_fail=True,
        # The names of files, which anybody may have chosen; the next task lists them with their generations.
        do_xcom_push=False,
    )

    @task
    def list_files() -> list[dict]:
        from include.water.register.objects import list_files

        return list_files()

    # Each takes several times its file's size.
    @task(max_active_tis_per_dag=4)
    def import_file(file: dict) -> dict:
        from include.water.register.importing import import_file

        return import_file(file)

    files = list_files()
    wait_for_files >> files
    import_file.expand(file=files)


import_site_register()
