"""A triggerer that runs for weeks follows the Airflow connection of the object store when its key is rotated.

In front of the real object store stands a server that lets in who shows a token, and gives tokens for the current key
of a service account, as Google does.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs

import pytest
from airflow.triggers.base import TaskSuccessEvent
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from include.streams.lake import catalog
from include.streams.landing import triggers
from include.streams.landing.tables import raw_table
from include.streams.landing.triggers import LandedOffsetsTrigger
from tests.integration.landing.conftest import rows
from tests.integration.landing.test_sensor import events_of, lane_of

pytestmark = pytest.mark.integration


class GuardedStore(ThreadingHTTPServer):
    """Forwards requests with the token of the current key to the object store, and refuses all others."""

    def __init__(self, store: str) -> None:
        super().__init__(("127.0.0.1", 0), _Guard)
        self.store, self.key, self.refused = store, "", 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Guard(BaseHTTPRequestHandler):
    server: GuardedStore

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/token":
            header = parse_qs(body.decode())["assertion"][0].partition(".")[0]
            key = json.loads(base64.urlsafe_b64decode(header + "=="))["kid"]
            if key != self.server.key:
                self._refuse(400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
            else:
                # The token expires at once, so each request fetches a new one.
                self._reply(200, {"access_token": key, "expires_in": 1, "token_type": "Bearer"})
        elif self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self._refuse(401, {"error": {"code": 401, "message": "Invalid Credentials"}})
        else:
            headers = {name: value for name, value in self.headers.items() if name not in ("Host", "Authorization")}
            asked = urllib.request.Request(self.server.store + self.path, body or None, headers, method=self.command)
            try:
                with urllib.request.urlopen(asked, timeout=30) as answer:
                    self._send(answer.status, answer.headers, answer.read())
            except urllib.error.HTTPError as error:
                self._send(error.code, error.headers, error.read())

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _answer

    def _refuse(self, status: int, content: dict) -> None:
        self.server.refused += 1
        self._reply(status, content)

    def _reply(self, status: int, content: dict) -> None:
        self._send(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _send(self, status: int, headers, body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def store(landing_services, monkeypatch) -> Iterator[GuardedStore]:
    with GuardedStore(landing_services.endpoints()["object_store"]["url"]) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        catalog.forget_catalogs()
        yield server
        server.shutdown()
    catalog.forget_catalogs()


def rotate(store: GuardedStore, key: str, monkeypatch) -> None:
    """A new key; the connection has it as soon as the old key is refused."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    account = {
        "type": "service_account",
        "project_id": "test",
        "client_email": "lane@test.iam.gserviceaccount.com",
        "token_uri": f"{store.url}/token",
        "private_key_id": key,
        "private_key": private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    }
    connection = {"conn_type": "google_cloud_platform", "extra": {"project": "test", "keyfile_dict": account}}
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps(connection))
    store.key = key


def test_a_waiting_sensor_continues_with_the_new_key(landed_topic, lane, send_orders, store, monkeypatch):
    monkeypatch.setattr(triggers, "AWAY_FIRST_SECONDS", 0.1)
    # The client retries for half a minute before it reports the refusal.
    monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=lambda seconds: asyncio.sleep(seconds / 100)))
    rotate(store, "first", monkeypatch)
    topic = landed_topic(partitions=1)
    send_orders(topic, 0, 5)
    consumer = lane(topic)
    trigger = LandedOffsetsTrigger.of(lane_of(consumer), until=time.time() + 60, poll_seconds=0.1)
    assert store.refused == 0

    def rotate_and_land() -> None:
        rotate(store, "second", monkeypatch)
        # Another process lands the data, with the new key.
        table = catalog.load_catalog.__wrapped__().load_table(raw_table(topic))
        table.append(rows(topic, 0, range(5)))

    (event,) = events_of(trigger, meanwhile=rotate_and_land)
    assert isinstance(event, TaskSuccessEvent)
    assert store.refused > 0
