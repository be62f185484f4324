"""The lower limit: a Dag of one task with the same effect, triggered through the REST API. No lane can be faster."""

from airflow.sdk import dag, task


@dag(schedule=None, max_active_runs=8)
def bench_floor():
    @task
    def handle(params=None):
        from benchmarks.consumers import record_directly

        record_directly("floor", [params["number"]])

    handle()


bench_floor()
