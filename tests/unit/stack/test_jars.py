"""Fetching jars from a repository that fails, as a network, a mirror or a proxy does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stack import StackError, jars
from tests.mirror import Mirror, serving


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    with serving(tmp_path) as mirror:
        monkeypatch.setenv("MAVEN_URL", f"{mirror.url}/")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(jars, "FIRST_PAUSE_SECONDS", 0.01)
        yield mirror


class Cache:
    """A cache of the mirror's jars."""

    def __init__(self, folder: Path, mirror: Mirror) -> None:
        self.folder = folder
        self.jar_set = replace(jars.SINK, lock=mirror.lock)
        self.lines: list[str] = []

    def fetch(self) -> list[bytes]:
        return [path.read_bytes() for path in jars.classpath(self.folder, self.lines.append, self.jar_set)]

    def files(self) -> set[str]:
        return {path.name for path in self.folder.rglob("*") if path.is_file()} - {"lock"}


@pytest.fixture
def cache(mirror: Mirror, tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", mirror)


@pytest.mark.parametrize("failure", ["unavailable", "truncated", "other content"])
def test_a_failed_download_is_repeated(failure: str, mirror: Mirror, cache: Cache):
    path = mirror.add("org.example:sink:1.0", b"the sink", failure, failure)
    assert cache.fetch() == [b"the sink"]
    assert mirror.requests == {path: 3}
    assert cache.files() == {"sink-1.0.jar"}
    assert "(attempt 2 for org.example:sink:1.0 failed: " in "\n".join(cache.lines)


def test_a_second_run_fetches_only_what_the_first_did_not(mirror: Mirror, cache: Cache, monkeypatch):
    monkeypatch.setattr(jars, "ThreadPoolExecutor", lambda max_workers: pool_of_one())
    good = mirror.add("org.example:good:1.0:linux", b"good")
    bad = mirror.add("org.example:bad:1.0", b"bad", *["truncated"] * jars.ATTEMPTS)
    with pytest.raises(StackError):
        cache.fetch()
    assert cache.files() == {"good-1.0-linux.jar"}
    (cache.folder / "org/example/good/1.0/other.jar.part").write_bytes(b"left by a kill")
    assert cache.fetch() == [b"good", b"bad"]
    assert mirror.requests == {good: 1, bad: jars.ATTEMPTS + 1}


def pool_of_one():
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1)


def test_a_jar_with_wrong_content_is_fetched_again_and_a_good_one_is_not(mirror: Mirror, cache: Cache):
    paths = [mirror.add(f"org.example:{name}:1", name.encode()) for name in ("good", "broken")]
    cache.fetch()
    (cache.folder / "org/example/broken/1/broken-1.jar").write_bytes(b"brok")
    assert cache.fetch() == [b"good", b"broken"]
    assert mirror.requests == dict(zip(paths, (1, 2), strict=True))


def test_a_changed_jar_of_a_mirror_is_refused(mirror: Mirror, cache: Cache):
    mirror.add("org.example:sink:1.0", b"the sink", *["other content"] * jars.ATTEMPTS)
    with pytest.raises(StackError, match=r"org.example:sink:1.0 .* not the locked one.* do not trust") as raised:
        cache.fetch()
    assert "\n" not in str(raised.value)
    assert cache.files() == set()


def test_a_jar_that_does_not_exist_is_asked_for_once(mirror: Mirror, cache: Cache):
    path = mirror.add("org.example:sink:1.0", b"the sink")
    del mirror.jars[path]
    with pytest.raises(StackError, match=r"sink:1.0 is not on .*; check MAVEN_URL and some.lock"):
        cache.fetch()
    assert mirror.requests == {path: 1}


def test_an_unavailable_repository_is_named_with_the_remedy(mirror: Mirror, cache: Cache):
    mirror.add("org.example:sink:1.0", b"the sink", *["unavailable"] * jars.ATTEMPTS)
    with pytest.raises(
        StackError, match=r"without a proxy in 5 attempts \(HTTP 503\).*HTTPS_PROXY.*MAVEN_URL"
    ) as raised:
        cache.fetch()
    assert "\n" not in str(raised.value)


def test_a_proxy_is_named_without_its_password(mirror: Mirror, cache: Cache, monkeypatch: pytest.MonkeyPatch):
    mirror.add("org.example:sink:1.0", b"the sink")
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("no_proxy", "")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://me:secret@127.0.0.1:1")
    with pytest.raises(
        StackError, match=r"through the proxy http://127.0.0.1:1 in 5 attempts \(ProxyError\)"
    ) as raised:
        cache.fetch()
    assert "secret" not in str(raised.value)


def test_a_full_disk_is_named_before_the_first_download(mirror: Mirror, cache: Cache, monkeypatch):
    mirror.add("org.example:sink:1.0", b"the sink")
    monkeypatch.setattr(jars.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1})())
    with pytest.raises(StackError, match="no disk space"):
        cache.fetch()


def test_a_disk_that_becomes_full_is_named(mirror: Mirror, cache: Cache, monkeypatch):
    mirror.add("org.example:sink:1.0", b"the sink")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StackError, match="no disk space"):
        cache.fetch()
    assert cache.files() == set()
