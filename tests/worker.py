"""Code in a real worker process of Airflow, whose supervisor calls an API server that a test controls."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
RUN = {
    "dag_run": {
        "dag_id": "a_dag", "run_id": "a_run", "run_type": "manual", "state": "running",
        "run_after": "2026-01-01T00:00:00Z", "consumed_asset_events": [], "partition_key": None,
        "logical_date": None, "data_interval_start": None, "data_interval_end": None, "start_date": None,
        "end_date": None,
    },
    "max_tries": 0,
}  # fmt: skip
CONNECTION = dict.fromkeys(["host", "schema", "login", "password", "port", "extra"])
# The supervisor of a worker, as Airflow's executors start it, with the test's code where the task's would be.
WORKER = """
import os, sys
from uuid import uuid4
from airflow.sdk.api.client import Client
from airflow.sdk.api.datamodels._generated import BundleInfo, TaskInstance
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import CommsDecoder
from airflow.sdk.execution_time.supervisor import ActivitySubprocess

def code():
    task_runner.SUPERVISOR_COMMS = CommsDecoder()
    task_runner.get_startup_details()
    import traceback
    try:
        exec(sys.argv[2], {"answer": lambda text: print(text, file=open(sys.argv[3], "w"))})
    except BaseException:
        print(traceback.format_exc(), file=open(sys.argv[3], "w"))
        os._exit(1)

what = TaskInstance(
    id=uuid4(), task_id="a_task", dag_id="a_dag", run_id="a_run", try_number=1, dag_version_id=uuid4()
)
sys.exit(ActivitySubprocess.start(
    what=what, dag_rel_path="", bundle_info=BundleInfo(name="a_bundle"), target=code,
    client=Client(base_url=sys.argv[1], token=""),
).wait())
"""


class ApiServer(ThreadingHTTPServer):
    """A server with Airflow's execution API for a supervisor.

    Attributes:
        connections: {connection id: its members, or the status of an error, or 0 for no answer}. Others are not found.
    """

    def __init__(self) -> None:
        server = self
        self.connections: dict[str, dict[str, Any] | int] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                conn_id = self.path.rsplit("/", 1)[-1]
                known = server.connections.get(conn_id, 404)
                if isinstance(known, dict):
                    self.answer(200, {**CONNECTION, "conn_id": conn_id, **known})
                elif known:
                    self.answer(known, {"detail": {"reason": "the test says so", "message": ""}})
                else:
                    self.close_connection = True

            def do_PATCH(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.answer(200, RUN)

            do_PUT = do_PATCH

            def answer(self, status: int, content: dict[str, Any]) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


def run_in_worker(code: str, api: ApiServer, environment: dict[str, str]) -> str:
    """Run code as a task; returns the text that the code passes to the function `answer`.

    Args:
        code: Python source.
        api: The API server.
        environment: The worker's environment.
    """
    url = f"http://127.0.0.1:{api.server_port}"
    result = Path(environment["AIRFLOW_HOME"]) / f"answer-{api.server_port}"
    result.unlink(missing_ok=True)
    # One try: otherwise the supervisor would repeat requests for a minute.
    done = subprocess.run(
        [sys.executable, "-c", WORKER, url, code, str(result)],
        cwd=PROJECT, env={**environment, "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = result.read_text().rstrip("\n") if result.exists() else ""
    assert done.returncode == 0, said + done.stdout + done.stderr
    return said
