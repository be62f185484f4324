"""
### Import the site register

Other programs drop CSV files of sites and customers below `register/incoming/` in the artifacts bucket. This Dag turns
them into rows of the tables `register_sites` and `register_customers`.

**Starts** when there are files: a sensor waits in the triggerer, without a worker; the first task chooses the sensor of
the store that the project uses. A run that has waited for 15 minutes ends as skipped, so that a cleared run can start;
the next run continues to wait.

**Makes** for each file: a valid file is applied in one transaction and moved below `register/archive/`. An invalid file
changes nothing and is moved below `register/rejected/`, with its report beside it and an alarm (`file_rejected`). A
file adds rows, and replaces rows with the same id; if two files have rows with the same id, the file that was uploaded
last wins. A run imports at most 100 files.

**When it fails** nothing is applied twice: the retry, a cleared run, or the next run recognizes finished files by name
and generation. Files that no run has finished stay below `register/incoming/`. A failed task opens the
alarm `dag_failed`.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor
from airflow.providers.google.cloud.sensors.gcs import GCSObjectsWithPrefixExistenceSensor
from airflow.sdk import dag, task

from include.streams import task_defaults
from include.water.register.layout import INCOMING


@dag(
    schedule="@continuous",
    # A start date is required: without it, the second run would get the date of the first, and Airflow would never
    # create it.
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # Two concurrent runs would list the same files.
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=2),
    default_args=task_defaults(
        timedelta(minutes=10), retry_delay=timedelta(seconds=20), max_retry_delay=timedelta(minutes=5)
    ),
    tags=["batch", "ingest"],
    doc_md=__doc__,
)
def import_site_register():
    @task.branch
    def choose_store() -> str:
        from include.streams.lake.stores import store_in_use

        return {"gs": "wait_for_files", "s3": "wait_for_files_s3"}[store_in_use().schemes[0]]

    bucket = "{{ var.value.get('artifacts_bucket', 'artifacts').split('://')[-1] }}"
    waiting = {
        "deferrable": True,
        "poke_interval": 10,
        "timeout": timedelta(minutes=15).total_seconds(),
        "soft_fail": True,
        # Not pushed: the names of the files, which may be chosen by anybody. The next task lists the files with their
        # generations.
        "do_xcom_push": False,
    }
    wait_for_files = GCSObjectsWithPrefixExistenceSensor(
        task_id="wait_for_files", bucket=bucket, prefix=INCOMING, **waiting
    )
    wait_for_files_s3 = S3KeySensor(
        task_id="wait_for_files_s3", bucket_name=bucket, bucket_key=f"{INCOMING}*", wildcard_match=True, **waiting
    )

    @task(trigger_rule="none_failed_min_one_success")
    def list_files() -> list[dict]:
        from include.water.register.objects import list_files

        return list_files()

    # Each task needs several times the file's size in memory.
    @task(max_active_tis_per_dag=4)
    def import_file(file: dict) -> dict:
        from include.water.register.importing import import_file

        return import_file(file)

    files = list_files()
    choose_store() >> [wait_for_files, wait_for_files_s3] >> files
    import_file.expand(file=files)


import_site_register()
