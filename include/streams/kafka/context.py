"""The message of a Dag run, from the Airflow context.

For the Dag of a consumer with one run per message. The run's partition key, shown in the UI, names the message's topic,
partition and offset. The message stays in Kafka, and the task that needs it reads it there, so no payload is stored in
an XCom or in Airflow's database.
"""

from typing import Any

from include.streams.kafka.consumers import Consumer
from include.streams.kafka.messages import Message


def partition_key() -> str:
    """The partition key of the Dag run whose task calls this: "topic-partition-offset".

    Raises:
        ValueError: The run has no partition key, for example because it was started by hand.
    """
    run = _context()["dag_run"]
    if not run.partition_key:
        raise ValueError(
            f"run {run.run_id} of {run.dag_id} has no partition key, so it has no message: runs of this Dag are "
            "started by messages, not by hand"
        )
    return run.partition_key


def message_of(consumer: Consumer) -> Message:
    """Read this run's message from Kafka.

        @task
        def show() -> None:
            message = message_of(ORDERS)
            log.info("%s: customer %s", message, message.event.customer_id)

    Call it in a task. It only reads: to apply the message's effect once, call `tasks.handle_message`.

    Args:
        consumer: The consumer that claimed the message.

    Returns:
        The message with `key`, `headers`, `timestamp` and coordinates; `event` is its payload by the contract.

    Raises:
        ValueError: The run has no partition key, or this consumer has not claimed the key.
        LookupError: The message is no longer in Kafka.
        ContractViolation: The message breaks its contract.
        RegistryUnavailable: The schema registry, which the topic's format needs, is unavailable.
    """
    from include.streams.kafka.tasks import read_message

    return read_message(consumer, partition_key())


def can_take_keys(dag_id: str) -> bool:
    """Whether partition keys that are emitted now would start runs of this Dag: Airflow drops keys of a paused Dag.

    Args:
        dag_id: The Dag that the keys start.

    Returns:
        False while the Dag is paused.
    """
    return not _context()["ti"].get_dag(dag_id).is_paused


def is_idle(dag_id: str) -> bool:
    """Whether no run of the Dag is queued or running.

    Args:
        dag_id: The Dag that the keys start.
    """
    return _context()["ti"].get_dr_count(dag_id, states=["queued", "running"]) == 0


def has_queued_runs(dag_id: str) -> bool:
    """Whether runs of the Dag are queued: then keys without a result are probably not lost, but wait in these runs.

    Args:
        dag_id: The Dag that the keys start.

    Returns:
        True if at least one run is queued.
    """
    return _context()["ti"].get_dr_count(dag_id, states=["queued"]) > 0


def keys_to_emit_again(consumer: Consumer, dag_id: str) -> list[str]:
    """The partition keys of a consumer's messages whose runs were never created, to be emitted again.

    Call it in a task of a maintenance Dag.

    Args:
        consumer: A consumer with one run per message.
        dag_id: The Dag that handles the keys.

    Returns:
        The keys, each "topic-partition-offset".

    Raises:
        AirflowSkipException: The Dag is paused, or no message has been open for too long.
    """
    from airflow.sdk.exceptions import AirflowSkipException

    from include.streams.kafka.tasks import claim_keys_again

    if not can_take_keys(dag_id):
        raise AirflowSkipException(f"{dag_id} is paused: Airflow would drop its keys")
    keys = claim_keys_again(consumer, worker_is_idle=is_idle(dag_id), worker_has_queue=has_queued_runs(dag_id))
    if not keys:
        raise AirflowSkipException(f"no message of {consumer.name} has been open for too long")
    return keys


def _context() -> Any:
    from airflow.sdk import get_current_context

    return get_current_context()
