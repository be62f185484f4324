"""Kafka's jars from Maven Central, exactly those of `kafka.lock`, fetched by jgo and checked by SHA-256.

`python -m stack.jars lock` resolves the dependencies again and rewrites the lock (part of `make lock`).
"""

import argparse
import errno
import fcntl
import hashlib
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from stack.errors import StackError

KAFKA_VERSION = "4.3.1"
LOCK = Path(__file__).with_name("kafka.lock")
CACHE = Path(__file__).resolve().parents[1] / ".stack" / "jars"

# Resolved one group after the other: in one resolution log4j's own dependency management wins, and puts
# kafka-clients 3.9.1 beside a 4.3.1 broker.
COORDINATES = (
    tuple(
        f"org.apache.kafka:{artifact}:{KAFKA_VERSION}"
        for artifact in ("kafka_2.13", "kafka-tools", "connect-runtime", "connect-json", "connect-transforms")
    ),
    ("org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",),
)
MIN_FREE_BYTES = 200 * 1024**2  # the set is 60 MB; the rest is room for the services' first files


def classpath(cache: Path, report: Callable[[str], None]) -> list[Path]:
    """The jars of the lock, all present in `cache` and with the right content; fetches what is not."""
    locked = read_lock()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests and `make up` share the cache
        # The content is checked every time (0.1 s): jgo writes under the final name, so a download that was
        # interrupted looks like a jar.
        missing = {c: sha for c, sha in locked.items() if _sha256(_path(cache, c)) != sha}
        if missing:
            _fetch(cache, missing, report)
    return [_path(cache, coordinate) for coordinate in locked]


def read_lock() -> dict[str, str]:
    """{"group:artifact:version": SHA-256 of the jar}"""
    lines = (line.split() for line in LOCK.read_text().splitlines() if line and not line.startswith("#"))
    return {coordinate: sha for coordinate, sha in lines}


def _path(cache: Path, coordinate: str) -> Path:
    group, artifact, version = coordinate.split(":")
    return cache / group.replace(".", "/") / artifact / version / f"{artifact}-{version}.jar"


def _sha256(path: Path) -> str | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(cache: Path, missing: dict[str, str], report: Callable[[str], None]) -> None:
    from jgo.maven import MavenContext

    free = shutil.disk_usage(cache).free
    if free < MIN_FREE_BYTES:
        raise StackError(
            f"no disk space for Kafka's jars: {free >> 20} MB free in {cache}, {MIN_FREE_BYTES >> 20} MB needed; "
            "free some and run the command again"
        )
    context = MavenContext(repo_cache=cache, local_repos=[], timeout=30)
    report(f"fetching {len(missing)} of Kafka's jars from Maven Central into {cache}")
    with ThreadPoolExecutor(max_workers=6) as pool:
        futures = {pool.submit(_fetch_one, context, cache, c, sha): c for c, sha in missing.items()}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                if done % 20 == 0 or done == len(futures):
                    report(f"{done} of {len(futures)} jars")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch_one(context, cache: Path, coordinate: str, sha256: str) -> None:
    group, artifact, version = coordinate.split(":")
    path = _path(cache, coordinate)
    try:
        path.unlink(missing_ok=True)
        context.project(group, artifact).at_version(version).artifact().resolve()
    except OSError as error:  # requests' errors are OSErrors too
        path.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            raise StackError(f"no disk space for Kafka's jars in {cache}; free some and run it again") from error
        raise StackError(
            f"cannot fetch {coordinate} from Maven Central ({type(error).__name__}); check the network or the "
            "proxy, or set KAFKA_BOOTSTRAP_SERVERS to use a broker of your own"
        ) from error
    except RuntimeError as error:
        raise StackError(f"{coordinate} is not to be had from Maven Central: {error}") from error
    if (found := _sha256(path)) != sha256:
        path.unlink(missing_ok=True)
        raise StackError(
            f"{coordinate}: SHA-256 {found} is not that of {LOCK.name}; run it again, and if it stays, do not trust "
            "the mirror that it came from"
        )


def write_lock(cache: Path) -> None:
    """Resolves COORDINATES and all that they need, and writes the lock."""
    import jgo
    from jgo.maven import MavenContext

    context = MavenContext(repo_cache=cache, local_repos=[], timeout=30)
    found: dict[str, str] = {}
    for group in COORDINATES:
        for artifact in jgo.resolve("+".join(group)):
            # An artifact that an earlier group brought keeps that group's version.
            found.setdefault(f"{artifact.groupId}:{artifact.artifactId}", artifact.version)
    lines = ["# The jars of the local Kafka broker and their SHA-256. Written by `make lock`."]
    for name, version in sorted(found.items()):
        group_id, artifact_id = name.split(":")
        path = context.project(group_id, artifact_id).at_version(version).artifact().resolve()
        lines.append(f"{name}:{version} {_sha256(path)}")
    LOCK.write_text("\n".join(lines) + "\n")
    print(f"{LOCK}: {len(found)} jars")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["lock"])
    parser.parse_args()
    sys.exit(write_lock(CACHE))
