"""Deliver outbox rows as HTTP POSTs."""

from collections.abc import Sequence

from sqlalchemy import Row

from include.operations.outbox import Refused, Skipped

CONNECT_SECONDS, READ_SECONDS = 5, 10
# The receiver may well take it later.
_TRY_LATER = {408, 425, 429}


class NotReached(Exception):
    """No answer, or one that says to try later."""


def post(conn_id: str, rows: Sequence[Row]) -> None:
    """POST each row's JSON to the Airflow HTTP connection, with the row's id as Idempotency-Key.

    The connection's host may hold a path; its extra holds headers such as a token. Raises Skipped when the connection
    is not defined, Refused when the receiver answers that it will not take the row, and NotReached when it may take it
    later. None of them shows the address: that of a chat program's webhook is its password.
    """
    from airflow.providers.http.hooks.http import HttpHook
    from airflow.sdk.exceptions import AirflowNotFoundException
    from requests import RequestException

    hook = HttpHook(method="POST", http_conn_id=conn_id)
    for row in rows:
        try:
            session = hook.get_conn({"Content-Type": "application/json", "Idempotency-Key": str(row.id)})
        except AirflowNotFoundException:
            raise Skipped(f"connection {conn_id} is not defined") from None
        try:
            # No redirects: a POST would be followed as a GET, and count as delivered.
            answer = session.post(
                hook.base_url, data=row.body, timeout=(CONNECT_SECONDS, READ_SECONDS), allow_redirects=False
            )
        except RequestException as error:
            raise NotReached(f"{conn_id} cannot be reached: {type(error).__name__}") from None
        if 300 <= answer.status_code < 500 and answer.status_code not in _TRY_LATER:
            raise Refused(f"{conn_id} answered {answer.status_code}")
        if answer.status_code >= 500 or answer.status_code in _TRY_LATER:
            raise NotReached(f"{conn_id} answered {answer.status_code}")
