"""A Maven repository on this machine, which can fail as the network or a proxy does."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Mirror:
    """The repository, and a lock of its jars.

    Attributes:
        url: Its address.
        lock: The lock, which `add` extends.
        jars: {path in the repository: content}.
        failures: {path: what the next requests get instead: "unavailable", "truncated" or "other content"}.
        requests: How often each path was requested.
    """

    def __init__(self, lock: Path, url: str) -> None:
        self.url = url
        self.lock = lock
        self.lock.write_text("# A comment.\n")
        self.jars: dict[str, bytes] = {}
        self.failures: dict[str, list[str]] = {}
        self.requests: Counter[str] = Counter()

    def add(self, coordinate: str, content: bytes, *failures: str) -> str:
        """Add a jar.

        Returns:
            Its path in the repository.
        """
        group, artifact, version, *classifier = coordinate.split(":")
        name = "-".join([artifact, version, *classifier])
        path = f"/{group.replace('.', '/')}/{artifact}/{version}/{name}.jar"
        self.jars[path] = content
        self.failures[path] = list(failures)
        with self.lock.open("a") as lock:
            lock.write(f"{coordinate} {hashlib.sha256(content).hexdigest()}\n")
        return path


@contextmanager
def serving(folder: Path) -> Iterator[Mirror]:
    """Serve a repository.

    Args:
        folder: The folder of the lock.
    """

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_) -> None: ...

        def do_GET(self) -> None:
            mirror.requests[self.path] += 1
            failure = mirror.failures[self.path].pop(0) if mirror.failures.get(self.path) else None
            content = mirror.jars.get(self.path)
            if content is None or failure == "unavailable":
                self.send_error(404 if content is None else 503)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if failure == "truncated":
                content = content[: len(content) // 2]
            elif failure == "other content":
                content = bytes(len(content))
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        mirror = Mirror(folder / "some.lock", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield mirror
        server.shutdown()
