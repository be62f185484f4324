"""Orders and returns become rows and messages: the event lane, in chunks."""

from datetime import timedelta

from airflow.sdk import dag, task

from include.streams import RETRIES, joined, task_defaults
from tests.e2e.shop import BOOK_ORDERS
from tests.e2e.shop_assets import ORDERS_WAITING


@dag(
    schedule=joined(ORDERS_WAITING),
    catchup=False,
    max_active_runs=8,
    dagrun_timeout=timedelta(hours=1),
    default_args=task_defaults(timedelta(minutes=10), owner="tests", reported=False, **RETRIES),
    tags=["event-driven", "kafka"],
    doc_md=__doc__,
)
def e2e_book_orders():
    @task
    def claim(run_id: str | None = None) -> list[dict]:
        from include.streams import claim_messages

        return claim_messages(BOOK_ORDERS, run_id)

    @task
    def handle(chunk: dict, run_id: str | None = None) -> None:
        from include.streams import handle_chunk

        handle_chunk(BOOK_ORDERS, chunk, run_id)

    handle.expand(chunk=claim())


e2e_book_orders()
