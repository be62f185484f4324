"""HTTP servers that misbehave on demand: a model's endpoint, and a webhook's receiver."""

import contextlib
import http.server
import json
import threading
import time
from typing import Any


class Receiver:
    """A server on 127.0.0.1 that can stop and start again at the same port."""

    # Whether a connection serves more than one request, as in real receivers; an open connection outlives `go_away`.
    keeps_connections = False

    def __init__(self) -> None:
        self._server: http.server.ThreadingHTTPServer | None = None
        self.port = 0
        self.come_back()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def come_back(self) -> None:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1" if outer.keeps_connections else "HTTP/1.0"
            # As in real servers: otherwise the body of each response waits 40 ms until the client acknowledges the
            # headers.
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, answer = outer.answer(dict(self.headers.items()), body)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                # The client may have closed the connection.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def go_away(self) -> None:
        """Connections are refused from now on."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def answer(self, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        """Status and body."""
        raise NotImplementedError


class Webhook(Receiver):
    """A receiver that keeps what it got: {idempotency key: [bodies]}."""

    def __init__(self) -> None:
        self.received: dict[str, list[Any]] = {}
        self.without_key = 0
        super().__init__()

    def answer(self, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        key = headers.get("Idempotency-Key")
        if key is None:
            self.without_key += 1
        else:
            self.received.setdefault(key, []).append(json.loads(body))
        return 200, b"{}"


class Model(Receiver):
    """Answers as Chat Completions do. `decide` makes the arguments of `submit` from the user's message; `mode` says how
    well it does: good, slow, rubbish (a status, a text, a call that cannot be used), or malicious (`deceive` decides).
    """

    SLOW_SECONDS = 8.0

    def __init__(self, decide, deceive) -> None:
        self.mode = "good"
        self.decide, self.deceive = decide, deceive
        self.asked: dict[str, int] = {}
        super().__init__()

    def answer(self, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        number = self.asked[self.mode] = self.asked.get(self.mode, 0) + 1
        user = json.loads(body)["messages"][1]["content"]
        if self.mode == "slow":
            time.sleep(self.SLOW_SECONDS)
        if self.mode == "rubbish":
            return (
                (500, b"<html>bad gateway</html>"),
                (200, b"not a chat completion"),
                (200, self._completion([("submit", '{"category": "everything"')])),
                (200, self._completion([("drop_tables", "{}")])),
                (429, b'{"error": {"message": "too many requests"}}'),
            )[number % 5]
        decide = self.deceive if self.mode == "malicious" else self.decide
        return 200, self._completion([("submit", json.dumps(decide(user)))])

    @staticmethod
    def _completion(calls: list[tuple[str, str]]) -> bytes:
        tool_calls = [
            {"id": f"call-{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for n, (name, arguments) in enumerate(calls)
        ]
        message = {"role": "assistant", "content": None, "tool_calls": tool_calls}
        return json.dumps(
            {
                "id": "completion",
                "object": "chat.completion",
                "model": "scripted-1",
                "choices": [{"index": 0, "finish_reason": "tool_calls", "message": message}],
                "usage": {"prompt_tokens": 500, "completion_tokens": 60, "total_tokens": 560},
            }
        ).encode()
