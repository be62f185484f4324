"""The script fetches the jars of the sink from a server and checks them by the lock, as in the container."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.requirements import PROJECT
from tests.mirror import Mirror, serving

SCRIPT = PROJECT / "stack" / "connect_plugin.sh"


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    with serving(tmp_path) as mirror:
        yield mirror


def fetch(mirror: Mirror, into: Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", SCRIPT, mirror.lock, into]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "MAVEN_URL": mirror.url, "FIRST_PAUSE": "0"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_jars_of_the_lock_are_fetched_once(mirror: Mirror, tmp_path: Path):
    mirror.add("org.example:sink:1.0", b"sink")
    native = mirror.add("org.example.deep:native:2.0:linux", b"native")
    first = fetch(mirror, tmp_path / "plugins" / "sink")
    assert first.stdout.endswith("2 jars, 2 of them fetched\n"), first.stderr
    del mirror.jars[native]
    again = fetch(mirror, tmp_path / "plugins" / "sink")
    assert again.stdout.endswith("2 jars, 0 of them fetched\n"), again.stderr
    assert names(tmp_path / "plugins" / "sink") == {"sink-1.0.jar", "native-2.0-linux.jar"}


def test_a_jar_of_other_content_is_refused_and_deleted(mirror: Mirror, tmp_path: Path):
    mirror.add("org.example:sink:1.0", b"sink", *["other content"] * 5)
    result = fetch(mirror, tmp_path / "sink")
    assert result.returncode == 1
    assert "sink-1.0.jar: its SHA-256 is not the locked one" in result.stderr
    assert names(tmp_path / "sink") == set()


def test_a_missing_jar_is_named_with_the_remedy(mirror: Mirror, tmp_path: Path):
    del mirror.jars[mirror.add("org.example:sink:1.0", b"sink")]
    result = fetch(mirror, tmp_path / "sink")
    assert result.returncode == 1
    assert f"cannot fetch {mirror.url}/org/example/sink/1.0/sink-1.0.jar" in result.stderr
    assert "set https_proxy to your proxy or MAVEN_URL to a mirror" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("failure", ["unavailable", "truncated", "other content"])
def test_a_failed_download_is_repeated(failure: str, mirror: Mirror, tmp_path: Path):
    path = mirror.add("org.example:sink:1.0", b"sink", failure, failure)
    result = fetch(mirror, tmp_path / "sink")
    assert result.returncode == 0, result.stderr
    assert mirror.requests[path] >= 3  # wget may also repeat by itself
    assert (tmp_path / "sink" / "sink-1.0.jar").read_bytes() == b"sink"


def test_after_a_new_lock_old_versions_are_deleted(mirror: Mirror, tmp_path: Path):
    mirror.add("org.example:sink:1.1", b"sink")
    (tmp_path / "sink").mkdir()
    (tmp_path / "sink" / "sink-1.0.jar").write_bytes(b"old")
    (tmp_path / "sink" / "sink-1.1.jar").write_bytes(b"cut off by a cra")
    assert fetch(mirror, tmp_path / "sink").returncode == 0
    assert names(tmp_path / "sink") == {"sink-1.1.jar"}
    assert (tmp_path / "sink" / "sink-1.1.jar").read_bytes() == b"sink"
