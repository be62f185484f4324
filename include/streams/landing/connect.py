"""Kafka Connect's REST API, through the Airflow HTTP connection `kafka_connect`."""

import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

log = logging.getLogger(__name__)

CONN_ID = "kafka_connect"
CONNECT_SECONDS, READ_SECONDS = 5, 30
# Connect answers 409 during a rebalance of its workers. A rebalance takes seconds, at most the session timeout of a
# lost worker.
REBALANCE_SECONDS, REBALANCE_PAUSE_SECONDS = 60.0, 0.5


class ConnectUnreachable(Exception):
    """Connect does not answer, or answers that it is unavailable."""


class ConnectSilent(ConnectUnreachable):
    """Connect does not answer in time; a further request would wait as long."""


class ConnectRefused(Exception):
    """Connect refuses the request."""


class Connect:
    """The connectors of one Kafka Connect cluster. The constructor blocks while the connection is fetched.

    Every method raises ConnectUnreachable and ConnectRefused. The connection's host is the address of Connect; its
    login and password are used for basic authentication.

    Args:
        conn_id: The Airflow connection of Kafka Connect.

    Raises:
        AirflowNotFoundException: The connection is not defined (raised by the constructor).
    """

    def __init__(self, conn_id: str = CONN_ID) -> None:
        from airflow.providers.http.hooks.http import HttpHook

        hook = HttpHook(http_conn_id=conn_id)
        self.conn_id = conn_id
        self._session = hook.get_conn({"Accept": "application/json"})
        self._url = hook.base_url.rstrip("/")

    def config(self, name: str) -> dict[str, str] | None:
        """The connector's configuration, with unresolved references to secrets; None if there is no such connector."""
        return self._call("GET", f"/connectors/{quote(name, safe='')}/config")

    def configs(self) -> dict[str, dict[str, str]]:
        """{name: configuration} of every connector."""
        connectors = self._call("GET", "/connectors?expand=info") or {}
        return {name: connector["info"]["config"] for name, connector in connectors.items()}

    def status(self, name: str) -> dict[str, Any] | None:
        """Connect's own `{"connector": {"state": ...}, "tasks": [{"id": 0, "state": ..., "trace": ...}]}`, or None."""
        return self._call("GET", f"/connectors/{quote(name, safe='')}/status")

    def statuses(self) -> dict[str, dict[str, Any]]:
        """{name: status as from `status`} of every connector, in one request."""
        connectors = self._call("GET", "/connectors?expand=status") or {}
        return {name: connector["status"] for name, connector in connectors.items() if "status" in connector}

    def put_config(self, name: str, config: dict[str, str]) -> None:
        """Create the connector, or change its configuration, which restarts its tasks."""
        self._call("PUT", f"/connectors/{quote(name, safe='')}/config", config)

    def restart(self, name: str, *, only_failed: bool = True) -> bool:
        """Restart the connector and its tasks, or only the failed ones; False if there is no such connector."""
        query = f"includeTasks=true&onlyFailed={str(only_failed).lower()}"
        return self._call("POST", f"/connectors/{quote(name, safe='')}/restart?{query}") is not None

    def stop(self, name: str) -> bool:
        """Stop the connector's tasks; its configuration and offsets stay. False if there is no such connector."""
        return self._call("PUT", f"/connectors/{quote(name, safe='')}/stop") is not None

    def resume(self, name: str) -> bool:
        """Resume a stopped connector; False if there is no such connector."""
        return self._call("PUT", f"/connectors/{quote(name, safe='')}/resume") is not None

    def set_offsets(self, name: str, topic: str, offsets: dict[int, int]) -> None:
        """Set the offsets at which a stopped sink continues. Connect refuses this while a task runs.

        Args:
            name: The connector.
            topic: The topic that it reads.
            offsets: {partition: the next offset to read}.
        """
        parts = [
            {
                "partition": {"kafka_topic": topic, "kafka_partition": partition},
                "offset": {"kafka_offset": offset},
            }
            for partition, offset in sorted(offsets.items())
        ]
        self._call("PATCH", f"/connectors/{quote(name, safe='')}/offsets", {"offsets": parts})

    def delete(self, name: str) -> bool:
        """Remove the connector; its offsets, control topic and table stay. False if there is no such connector."""
        return self._call("DELETE", f"/connectors/{quote(name, safe='')}") is not None

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The response's JSON, {} for an empty response, None for 404."""
        from requests import RequestException
        from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

        rebalanced = Retrying(
            retry=retry_if_result(_is_rebalancing),
            stop=stop_after_delay(REBALANCE_SECONDS),
            wait=wait_fixed(REBALANCE_PAUSE_SECONDS),
        )
        url, timeout = f"{self._url}{path}", (CONNECT_SECONDS, READ_SECONDS)
        try:
            answer = rebalanced(self._session.request, method, url, json=body, timeout=timeout)
        except RetryError as error:
            raise ConnectSilent(f"connection {self.conn_id}: {_reason(error.last_attempt.result())}") from None
        except RequestException as error:
            # The error's own text is left out, because it may contain the address with a password.
            raise ConnectSilent(
                f"connection {self.conn_id}: Kafka Connect does not answer ({type(error).__name__})"
            ) from None
        if answer.status_code == 404 and _reason(answer) != "HTTP 404":
            return None
        if answer.status_code >= 500:
            raise ConnectUnreachable(f"connection {self.conn_id}: {_reason(answer)}")
        if answer.status_code >= 300:
            raise ConnectRefused(f"connection {self.conn_id}: {method} {path}: {_reason(answer)}")
        try:
            return answer.json() if answer.content else {}
        except ValueError:
            # A proxy's login page, for example.
            raise ConnectUnreachable(f"connection {self.conn_id}: {method} {path}: the answer is not JSON") from None


def _is_rebalancing(answer: Any) -> bool:
    """Whether Connect is rebalancing: it answers 409, or 500 when it has just noticed the rebalance."""
    return answer.status_code == 409 or (answer.status_code == 500 and "rebalance" in _reason(answer))


def _reason(answer: Any) -> str:
    """The status and Connect's error message in one line; only the status if another server has answered."""
    try:
        message = answer.json()["message"]
    except (ValueError, LookupError, TypeError):
        message = ""
    return f"HTTP {answer.status_code} {' '.join(str(message).split())[:300]}".strip()
