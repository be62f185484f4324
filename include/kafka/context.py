"""The message of a Dag run, from the Airflow context.

For the Dag of a consumer with one run per message. Its partition key, shown in the UI, names the message's topic,
partition and offset; the message itself stays in Kafka and is read by the task that needs it, so that no payload ever
lies in an XCom or in Airflow's database.
"""

from typing import Any

from include.kafka.consumers import Consumer
from include.kafka.messages import Message


def partition_key() -> str:
    """The partition key of the Dag run whose task calls this: "topic-partition-offset".

    Raises ValueError in a run without one, such as a run started by hand.
    """
    run = _context()["dag_run"]
    if not run.partition_key:
        raise ValueError(
            f"run {run.run_id} of {run.dag_id} has no partition key, so it has no message: runs of this Dag are "
            "started by messages, not by hand"
        )
    return run.partition_key


def message_of(consumer: Consumer) -> Message:
    """This run's message: `event` is its payload by the contract, with `key`, `headers`, `timestamp` and coordinates.

        @task
        def show() -> None:
            message = message_of(TRIAGE_SERVICE_REQUESTS)
            log.info("%s: category %s", message, message.event.channel)

    Call it in a task. It only reads: to act on the message once, call `tasks.handle_message`. Raises what
    `partition_key` and `tasks.read_message` raise.
    """
    from include.kafka.tasks import read_message

    return read_message(consumer, partition_key())


def can_take_keys(dag_id: str) -> bool:
    """Whether partition keys that are emitted now would start runs of this Dag: Airflow drops those of a paused one."""
    return not _context()["ti"].get_dag(dag_id).is_paused


def is_idle(dag_id: str) -> bool:
    """Whether the Dag has no run that is queued or running."""
    return _context()["ti"].get_dr_count(dag_id, states=["queued", "running"]) == 0


def has_queued_runs(dag_id: str) -> bool:
    """Whether runs of the Dag wait for others to end: their keys are not lost, only not begun."""
    return _context()["ti"].get_dr_count(dag_id, states=["queued"]) > 0


def _context() -> Any:
    from airflow.sdk import get_current_context

    return get_current_context()
