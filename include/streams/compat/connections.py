"""Distinguish a connection that is not defined from a connection that could not be looked up."""

import logging
from typing import Any

log = logging.getLogger(__name__)

# Whether this process has logged that Airflow's private parts have changed.
_is_logged = False


class LookUpFailed(Exception):
    """It could not be determined whether a connection is defined; a later look-up may succeed."""


def is_defined(conn_id: str) -> bool:
    """Whether the Airflow connection is defined.

    Airflow raises AirflowNotFoundException for every failed look-up: when the API server is unavailable or answers with
    an error, when a secrets backend raises, when a definition cannot be read. If messages were dropped because their
    "connection is not defined", they would be lost in an outage. So this function queries each secrets backend again,
    and the API server through the supervisor, whose answer names the reason.

    The API server itself ignores errors of its database and its secrets backends, and answers "not found". So do not
    drop anything after one such answer.

    Args:
        conn_id: The id of the connection.

    Returns:
        False only after a definite answer. If Airflow's private parts have changed, Airflow's own answer counts, and
        the reason is logged once.

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
        sources = _sources(conn_id)
    except Exception as error:
        _log_once(error)
        return False
    for name, has_connection in sources:
        try:
            if has_connection():
                return True
        except Exception as error:
            raise _failed(conn_id, name, error) from None
    return False


def lacks_connection(conn_id: str) -> bool:
    """Whether a connection is not defined, because the deployment does not use a part such as the standard lane.

    Then maintenance of that part has nothing to do. This is logged, and is no failure.

    Args:
        conn_id: The id of the connection that the part needs.

    Returns:
        True if the connection is not defined.

    Raises:
        LookUpFailed: There was no definite answer.
    """
    if is_defined(conn_id):
        return False
    log.info("nothing to do: connection %s is not defined", conn_id)
    return True


def _sources(conn_id: str) -> list[tuple[str, Any]]:
    """(name, function that looks the connection up) of each source of connections, in Airflow's order."""
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import GetConnection
    from airflow.sdk.execution_time.secrets import ExecutionAPISecretsBackend
    from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded

    not_found, message = ErrorType.CONNECTION_NOT_FOUND, GetConnection(conn_id=conn_id)

    def look_up_in_api_server() -> bool:
        # The request that ExecutionAPISecretsBackend sends. That backend returns None for every error.
        answer: Any = task_runner.SUPERVISOR_COMMS.send(message)
        error = getattr(answer, "error", None)
        if error not in (None, not_found):
            raise AirflowRuntimeError(answer)
        return error is None

    return [
        (type(backend).__name__, look_up_in_api_server)
        if isinstance(backend, ExecutionAPISecretsBackend)
        else (type(backend).__name__, lambda backend=backend: bool(backend.get_connection(conn_id=conn_id)))
        for backend in ensure_secrets_backend_loaded()
    ]


def _failed(conn_id: str, source: str, error: Exception) -> LookUpFailed:
    # Without the error's own text: it may quote the definition, with a password.
    kind = getattr(getattr(getattr(error, "error", None), "error", None), "value", type(error).__name__)
    return LookUpFailed(f"connection {conn_id}: the look-up failed ({source}: {kind})")


def _log_once(error: Exception) -> None:
    global _is_logged
    if _is_logged:
        return
    _is_logged = True
    log.warning(
        "a connection that cannot be looked up counts as not defined: %s: %s. This uses private parts of Airflow, see "
        "include/streams/compat/__init__.py",
        type(error).__name__,
        error,
    )
