"""An OpenAI-compatible endpoint on loopback that answers what a test has written, and keeps what it was sent."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[[BaseHTTPRequestHandler], None]


class Endpoint:
    """`script` is what happens at the first, second, ... request; the last act is repeated."""

    def __init__(self, *script: Act) -> None:
        self.script = list(script)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """The messages of the last request."""
        return self.requests[-1]["messages"]

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        with self.lock:
            act = self.script[min(len(self.requests), len(self.script) - 1)]
            self.requests.append({"path": handler.path, **json.loads(body)})
            self.keys.append(handler.headers["Authorization"])
        act(handler)

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Listen; gives the base URL."""
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                # A client that has given up takes its connection with it.
                try:
                    endpoint.handle(self)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def sends(body: bytes, status: int = 200, **headers: str) -> Act:
    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return act


def replies(message: dict[str, Any], finish_reason: str = "stop", usage: Any = (100, 20), **changes: Any) -> Act:
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted-2026",
        "choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}],
        "usage": usage and {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)},
        **changes,
    }
    return sends(json.dumps(answer).encode())


def calls(*functions: tuple[str, Any], **options: Any) -> Act:
    """An answer that calls tools; arguments are sent as JSON, a string as it is."""
    tool_calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
        }
        for number, (name, given) in enumerate(functions)
    ]
    return replies({"content": None, "tool_calls": tool_calls}, "tool_calls", **options)


def submits(answer: Any, **options: Any) -> Act:
    return calls(("submit", answer), **options)


def says(text: str, **options: Any) -> Act:
    return replies({"content": text}, **options)


def fails(status: int, **headers: str) -> Act:
    return sends(b'{"error": {"message": "no, dear customer@example.com", "type": "x"}}', status, **headers)


def hangs(seconds: float) -> Act:
    def act(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return act


def drips(seconds: float) -> Act:
    """A byte now and then: never silent long enough for a timeout between two bytes."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    return act


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.close()
