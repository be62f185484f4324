"""The script fetches the jars of the sink from a server and checks them by the lock, as in the container."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stack.requirements import PROJECT

SCRIPT = PROJECT / "stack" / "connect_plugin.sh"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None: ...


class Mirror:
    """A Maven repository on this machine, and a lock of its jars."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.lock = folder.parent / "sink.lock"
        self.lock.write_text("# A comment.\n")

    def add(self, coordinate: str, content: bytes) -> Path:
        group, artifact, version, *classifier = coordinate.split(":")
        path = self.folder / group.replace(".", "/") / artifact / version
        path.mkdir(parents=True)
        jar = path / f"{'-'.join([artifact, version, *classifier])}.jar"
        jar.write_bytes(content)
        with self.lock.open("a") as lock:
            lock.write(f"{coordinate} {hashlib.sha256(content).hexdigest()}\n")
        return jar

    def fetch(self, into: Path) -> subprocess.CompletedProcess[str]:
        command = ["sh", SCRIPT, self.lock, into]
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "MAVEN_URL": self.url}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    folder = tmp_path / "maven"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Mirror(folder, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_jars_of_the_lock_are_fetched_once(mirror: Mirror, tmp_path: Path):
    mirror.add("org.example:sink:1.0", b"sink")
    native = mirror.add("org.example.deep:native:2.0:linux", b"native")
    first = mirror.fetch(tmp_path / "plugins" / "sink")
    assert first.stdout.endswith("2 jars, 2 of them fetched\n"), first.stderr
    native.unlink()
    again = mirror.fetch(tmp_path / "plugins" / "sink")
    assert again.stdout.endswith("2 jars, 0 of them fetched\n"), again.stderr
    assert names(tmp_path / "plugins" / "sink") == {"sink-1.0.jar", "native-2.0-linux.jar"}


def test_a_jar_of_other_content_is_refused_and_deleted(mirror: Mirror, tmp_path: Path):
    mirror.add("org.example:sink:1.0", b"sink").write_bytes(b"something else")
    result = mirror.fetch(tmp_path / "sink")
    assert result.returncode == 1
    assert "sink-1.0.jar: its SHA-256 is not the locked one" in result.stderr
    assert names(tmp_path / "sink") == set()


def test_a_missing_jar_is_named_with_the_remedy(mirror: Mirror, tmp_path: Path):
    mirror.add("org.example:sink:1.0", b"sink").unlink()
    result = mirror.fetch(tmp_path / "sink")
    assert result.returncode == 1
    assert f"cannot fetch {mirror.url}/org/example/sink/1.0/sink-1.0.jar" in result.stderr
    assert "MAVEN_URL" in result.stderr


def test_after_a_new_lock_old_versions_are_deleted(mirror: Mirror, tmp_path: Path):
    mirror.add("org.example:sink:1.1", b"sink")
    (tmp_path / "sink").mkdir()
    (tmp_path / "sink" / "sink-1.0.jar").write_bytes(b"old")
    (tmp_path / "sink" / "sink-1.1.jar").write_bytes(b"cut off by a cra")
    assert mirror.fetch(tmp_path / "sink").returncode == 0
    assert names(tmp_path / "sink") == {"sink-1.1.jar"}
    assert (tmp_path / "sink" / "sink-1.1.jar").read_bytes() == b"sink"
