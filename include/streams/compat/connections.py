"""Tell a connection that is not defined from one that could not be looked up."""

import logging
from typing import Any

log = logging.getLogger(__name__)

# Whether this process has logged that Airflow's parts are not the known ones.
_said = False


class LookUpFailed(Exception):
    """Airflow could not say whether a connection is defined; a later look may."""


def is_defined(conn_id: str) -> bool:
    """Whether the Airflow connection is defined.

    Airflow raises AirflowNotFoundException for every failed look-up: when the API server is away or answers with an
    error, when a secrets backend raises, when a definition cannot be read. What is dropped because "its connection is
    not defined" would be lost in an outage. So this asks each secrets backend again, and the API server through the
    supervisor, whose answer names the reason.

    The API server itself swallows errors of its database and its secrets backends, and answers "not found". So drop
    nothing for good after one answer.

    Args:
        conn_id: The id of the connection.

    Returns:
        False only after a definite answer. Where Airflow's private parts are not the known ones, Airflow's own answer
        counts, and the reason is logged once.

    Raises:
        LookUpFailed: There was no definite answer.
    """
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        BaseHook.get_connection(conn_id)
        return True
    except AirflowNotFoundException:
        pass
    except Exception as error:
        # Such as an API server that denies access.
        raise _failed(conn_id, "Airflow", error) from None
    try:
        places = _places(conn_id)
    except Exception as error:
        _say(error)
        return False
    for name, ask in places:
        try:
            if ask():
                return True
        except Exception as error:
            raise _failed(conn_id, name, error) from None
    return False


def is_without(conn_id: str) -> bool:
    """Whether the deployment does without a part, such as the standard lane: its connection is not defined.

    Maintenance of that part then has nothing to do, which is logged and is no failure.

    Args:
        conn_id: The id of the connection that the part needs.

    Raises:
        LookUpFailed: There was no definite answer.
    """
    if is_defined(conn_id):
        return False
    log.info("nothing to do: connection %s is not defined", conn_id)
    return True


def _places(conn_id: str) -> list[tuple[str, Any]]:
    """(name, function that asks it) of each place where Airflow looks for a connection, in Airflow's order."""
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import GetConnection
    from airflow.sdk.execution_time.secrets import ExecutionAPISecretsBackend
    from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded

    not_found, message = ErrorType.CONNECTION_NOT_FOUND, GetConnection(conn_id=conn_id)

    def ask_api_server() -> bool:
        # The backend returns None for every error; this is what it asks.
        answer: Any = task_runner.SUPERVISOR_COMMS.send(message)
        error = getattr(answer, "error", None)
        if error not in (None, not_found):
            raise AirflowRuntimeError(answer)
        return error is None

    return [
        (type(one).__name__, ask_api_server)
        if isinstance(one, ExecutionAPISecretsBackend)
        else (type(one).__name__, lambda one=one: bool(one.get_connection(conn_id=conn_id)))
        for one in ensure_secrets_backend_loaded()
    ]


def _failed(conn_id: str, place: str, error: Exception) -> LookUpFailed:
    # Without the error's own text: it may quote the definition, with a password.
    kind = getattr(getattr(getattr(error, "error", None), "error", None), "value", type(error).__name__)
    return LookUpFailed(f"connection {conn_id}: the look-up failed ({place}: {kind})")


def _say(error: Exception) -> None:
    global _said
    if _said:
        return
    _said = True
    log.warning(
        "a connection that cannot be looked up counts as not defined: %s: %s. This uses private parts of Airflow, see "
        "include/streams/compat/__init__.py",
        type(error).__name__,
        error,
    )
