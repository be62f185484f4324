"""Airflow's REST API for the tests of the whole stack."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait until the condition returns a true value, and return it."""
    until = time.monotonic() + seconds
    while True:
        asked = time.monotonic()
        if result := condition():
            return result
        now = time.monotonic()
        assert now < until, f"not within {seconds:.0f} s: {what}"
        # A check takes processor time from the awaited work: it gets at most a quarter of the time.
        time.sleep(max(0.2, 3 * (now - asked)))


class Airflow:
    """Airflow's REST API (/api/v2), with a login."""

    def __init__(self, url: str, username: str, password: str) -> None:
        answer = httpx.post(f"{url}/auth/token", json={"username": username, "password": password}, timeout=30)
        answer.raise_for_status()
        headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        self._client = httpx.Client(base_url=f"{url}/api/v2", headers=headers, timeout=30)

    def ask(self, method: str, path: str, **json: Any) -> Any:
        answer = self._client.request(method, path, json=json or None)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def pause(self, dag: str, is_paused: bool) -> None:
        self.ask("PATCH", f"/dags/{dag}?update_mask=is_paused", is_paused=is_paused)

    def start(self, *dags: str) -> None:
        """Unpause Dags when Airflow has parsed all of them; afterwards their watchers are registered."""
        known = lambda: {dag["dag_id"]: dag for dag in self.ask("GET", "/dags?limit=100")["dags"]}  # noqa: E731
        wait_for(lambda: known().keys() >= set(dags), 90, f"Airflow knows {', '.join(dags)}")
        before = known()
        for dag in dags:
            self.pause(dag, False)
        # Airflow registers the watchers of a Dag when it parses the file, which could take five minutes.
        for token in {before[dag]["file_token"] for dag in dags}:
            self.ask("PUT", f"/parseDagFile/{token}")
        parsed = lambda now: all(now[dag]["last_parsed_time"] > before[dag]["last_parsed_time"] for dag in dags)  # noqa: E731
        wait_for(lambda: parsed(known()), 90, f"Airflow has parsed {', '.join(dags)} again")

    def run(self, run_id: str, dag: str) -> dict[str, Any]:
        return self.ask("GET", f"/dags/{dag}/dagRuns/{quote(run_id, safe='')}")

    def tasks(self, run_id: str, dag: str) -> list[dict[str, Any]]:
        return self.ask("GET", f"/dags/{dag}/dagRuns/{quote(run_id, safe='')}/taskInstances")["task_instances"]

    def wait_for_success(self, run_id: str, dag: str, seconds: float = 60) -> None:
        def ended() -> str | None:
            state = self.run(run_id, dag)["state"]
            return state if state in ("success", "failed") else None

        assert wait_for(ended, seconds, f"the run {run_id} of {dag} ends") == "success"

    def close(self) -> None:
        self._client.close()
