"""Jars from Maven Central or the mirror MAVEN_URL, exactly those in the lock files, checked by SHA-256.

`python -m stack.jars lock` resolves the dependencies again and rewrites the locks (part of `make lock`), with jgo.
`stack/connect_plugin.sh` fetches the sink of the landing for another Kafka Connect, without Python.
"""

import argparse
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from stack.errors import StackError

KAFKA_VERSION = "4.3.1"
ICEBERG_VERSION = "1.11.0"
DEBEZIUM_VERSION = "3.4.0.Final"
S3PROXY_VERSION = "3.1.0"
APICURIO_VERSION = "3.3.3"
CACHE = Path(__file__).resolve().parents[1] / ".stack" / "jars"


@dataclass(frozen=True)
class JarSet:
    """Jars that are locked together.

    Attributes:
        title: The name in messages and in the lock.
        lock: The lock file.
        resolved: Groups of coordinates. Each group is resolved with its dependencies, one group after the other.
        alone: Coordinates that are taken without their dependencies.
        unneeded: Patterns of group:artifact that are removed from the resolved jars.
    """

    title: str
    lock: Path
    resolved: tuple[tuple[str, ...], ...]
    alone: tuple[str, ...] = ()
    unneeded: tuple[str, ...] = ()


KAFKA = JarSet(
    "jars of the local Kafka broker and Kafka Connect",
    Path(__file__).with_name("kafka.lock"),
    # One group after the other: in a single resolution log4j's own dependency management wins, and gives kafka-clients
    # 3.9.1 for a 4.3.1 broker.
    resolved=(
        tuple(
            f"org.apache.kafka:{artifact}:{KAFKA_VERSION}"
            for artifact in ("kafka_2.13", "kafka-tools", "connect-runtime", "connect-json", "connect-transforms")
        ),
        ("org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",),
    ),
)
SINK = JarSet(
    "jars of Kafka Connect's Iceberg sink",
    Path(__file__).with_name("sink.lock"),
    resolved=(
        (
            *(
                f"org.apache.iceberg:{artifact}:{ICEBERG_VERSION}"
                for artifact in (
                    "iceberg-kafka-connect",
                    "iceberg-gcp",
                    "iceberg-data",
                    "iceberg-parquet",
                    "iceberg-orc",
                )
            ),
            "com.google.cloud:google-cloud-storage:2.58.0",
            "org.postgresql:postgresql:42.7.7",
        ),
    ),
    alone=(
        # For topics whose contract needs headers: Kafka Connect has no transform that copies a header into a record.
        f"io.debezium:debezium-core:{DEBEZIUM_VERSION}",
        f"io.debezium:debezium-api:{DEBEZIUM_VERSION}",
        # The sink refers to Hadoop's classes (and ORC's) even when it writes Parquet to a bucket. With all dependencies
        # of Hadoop there would be twice as many jars.
        "org.apache.hadoop:hadoop-common:3.4.1",
        "org.apache.hadoop.thirdparty:hadoop-shaded-guava:1.3.0",
        "com.fasterxml.woodstox:woodstox-core:5.4.0",
        "org.codehaus.woodstox:stax2-api:4.2.1",
        "commons-collections:commons-collections:3.2.2",
    ),
    unneeded=(
        # Kafka's loggers are used; a second slf4j in the plugin would log nowhere.
        "org.slf4j:*",
        # Objects are written over HTTP. gRPC, its metrics and its resolvers are the larger half of the client. grpc-api
        # stays, because the client's HTTP part refers to its classes.
        "com.google.api.grpc:*",
        "com.google.api:gax-grpc",
        "com.google.cloud:google-cloud-core-grpc",
        "com.google.cloud:google-cloud-monitoring",
        "com.google.cloud.opentelemetry:*",
        "io.grpc:grpc-[!a]*",
        "io.grpc:grpc-alts",
        "io.grpc:grpc-auth",
        "io.opentelemetry:opentelemetry-sdk*",
        "io.opentelemetry.contrib:*",
        "io.opentelemetry.semconv:*",
        "io.perfmark:*",
        "com.google.re2j:*",
        "com.google.protobuf:protobuf-java-util",
        "org.conscrypt:*",
        # Formats of other engines, and annotations that nothing reads at run time.
        "org.mongodb:bson",
        "org.apache.parquet:parquet-variant",
        "org.apache.commons:*",
        "commons-io:*",
        "commons-pool:*",
        "com.google.android:annotations",
        "com.google.auto.value:*",
        "com.google.code.findbugs:*",
        "com.google.errorprone:*",
        "com.google.guava:listenablefuture",
        "com.google.j2objc:*",
        "javax.annotation:*",
        "org.checkerframework:*",
        "org.codehaus.mojo:*",
        # Ways to sign in and to send that this client does not use.
        "com.google.http-client:google-http-client-apache-v2",
        "com.google.oauth-client:*",
        "org.apache.httpcomponents.*",
        "org.threeten:threeten-extra",
    ),
)
S3 = JarSet(
    "jars of the local S3 server",
    Path(__file__).with_name("s3.lock"),
    resolved=(),
    # The jars whose classes S3Proxy loads when it stores files. With its clients of three clouds there would be 230.
    alone=(
        f"org.gaul:s3proxy:{S3PROXY_VERSION}",
        *(
            f"org.apache.jclouds{artifact}:2.7.0"
            for artifact in (
                ":jclouds-blobstore",
                ":jclouds-core",
                ".api:oauth",
                ".api:openstack-keystone",
                ".api:openstack-swift",
                ".api:s3",
                ".driver:jclouds-slf4j",
                ".provider:azureblob",
            )
        ),
        "aopalliance:aopalliance:1.0",
        "args4j:args4j:2.37",
        "ch.qos.logback:logback-classic:1.5.32",
        "ch.qos.logback:logback-core:1.5.32",
        "com.fasterxml.jackson.core:jackson-annotations:2.21",
        "com.fasterxml.jackson.core:jackson-core:2.21.2",
        "com.fasterxml.jackson.core:jackson-databind:2.21.2",
        "com.fasterxml.jackson.dataformat:jackson-dataformat-xml:2.21.2",
        "com.fasterxml.woodstox:woodstox-core:7.1.1",
        "com.google.code.gson:gson:2.11.0",
        "com.google.errorprone:error_prone_annotations:2.27.0",
        "com.google.guava:failureaccess:1.0.2",
        "com.google.guava:guava:33.4.0-jre",
        "com.google.inject.extensions:guice-assistedinject:7.0.0",
        "com.google.inject:guice:7.0.0",
        "jakarta.annotation:jakarta.annotation-api:2.0.0",
        "jakarta.inject:jakarta.inject-api:2.0.1",
        "jakarta.servlet:jakarta.servlet-api:6.0.0",
        "jakarta.ws.rs:jakarta.ws.rs-api:3.0.0",
        "jakarta.xml.bind:jakarta.xml.bind-api:4.0.2",
        "javax.annotation:javax.annotation-api:1.3.2",
        "org.codehaus.woodstox:stax2-api:4.2.2",
        "org.slf4j:jcl-over-slf4j:2.0.17",
        "org.slf4j:slf4j-api:2.0.17",
    ),
)
S3_SINK = JarSet(
    "jars with which Kafka Connect's Iceberg sink writes to S3",
    Path(__file__).with_name("s3_sink.lock"),
    resolved=(),
    alone=(
        f"org.apache.iceberg:iceberg-aws:{ICEBERG_VERSION}",
        # Amazon's client, with its dependencies under names of their own.
        f"org.apache.iceberg:iceberg-aws-bundle:{ICEBERG_VERSION}",
    ),
)
REGISTRY = JarSet(
    "archive of the schema registry",
    Path(__file__).with_name("registry.lock"),
    resolved=(),
    # The whole program, with its libraries.
    alone=(f"io.apicurio:apicurio-registry-app:{APICURIO_VERSION}:all:tar.gz",),
)
MIN_FREE_BYTES = 200 * 1024**2  # a set is 60 MB; the rest is room for the services' first files
TIMEOUT_SECONDS = (10, 30)  # to connect, and without a byte
ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 1  # twice as long after each attempt: about 20 s in all
REPORT_SECONDS = 5


def classpath(cache: Path, report: Callable[[str], None], jar_set: JarSet = KAFKA) -> list[Path]:
    """The jars of the set's lock; jars that are missing or have the wrong content are fetched.

    Args:
        cache: The folder of the jars.
        report: Called with each line of progress.
        jar_set: The set.

    Returns:
        The paths of all jars, with the locked content.
    """
    locked = read_lock(jar_set)
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests and `make up` share the cache
        # The content is checked every time (0.1 s): `make lock` fetches with jgo, which writes to the final name, so
        # its interrupted download looks like a jar.
        missing = {c: sha for c, sha in locked.items() if _sha256(_path(cache, c)) != sha}
        if missing:
            _fetch(cache, missing, report, jar_set)
    return [_path(cache, coordinate) for coordinate in locked]


def read_lock(jar_set: JarSet = KAFKA) -> dict[str, str]:
    """{"group:artifact:version", or with ":classifier" or ":classifier:packaging": SHA-256 of the file}"""
    lines = (line.split() for line in jar_set.lock.read_text().splitlines() if line and not line.startswith("#"))
    return {coordinate: sha for coordinate, sha in lines}


def _path(cache: Path, coordinate: str) -> Path:
    group, artifact, version, classifier, packaging = (*coordinate.split(":"), "", "")[:5]
    name = "-".join(filter(None, [artifact, version, classifier]))
    return cache / group.replace(".", "/") / artifact / version / f"{name}.{packaging or 'jar'}"


def unpacked(archive: Path) -> Path:
    """The folder with the content of a .tar.gz archive, next to it; it is unpacked if it is not there yet.

    Args:
        archive: The archive, whose content is locked.
    """
    folder = archive.with_name(f"{archive.name}.unpacked")
    with (archive.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests and `make up` share the cache
        if not folder.exists():
            # Renamed when it is complete: a process that was killed leaves no half of it under the name.
            unfinished = archive.with_name(f"{archive.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            with tarfile.open(archive) as content:
                content.extractall(unfinished, filter="data")
            unfinished.rename(folder)
    return folder


def _sha256(path: Path) -> str | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(cache: Path, missing: dict[str, str], report: Callable[[str], None], jar_set: JarSet) -> None:
    free = shutil.disk_usage(cache).free
    if free < MIN_FREE_BYTES:
        raise StackError(
            f"no disk space for the {jar_set.title}: {free >> 20} MB free in {cache}, {MIN_FREE_BYTES >> 20} MB "
            "needed; free some and run the command again"
        )
    download = Download(cache, repository(), jar_set)
    report(f"fetching {len(missing)} {jar_set.title} from {_shown(download.url)} into {cache}")
    with ThreadPoolExecutor(max_workers=6) as pool:
        futures = [pool.submit(download.fetch, coordinate, sha) for coordinate, sha in missing.items()]
        try:
            pending = set(futures)
            while pending:
                done, pending = wait(pending, REPORT_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                report(f"{len(missing) - len(pending)} of {len(missing)} jars, {download.progress()}")
        except BaseException:
            download.stopped.set()  # also ends the pauses before further attempts
            pool.shutdown(cancel_futures=True)
            raise


def repository() -> str:
    """The address of the Maven repository: MAVEN_URL, else Maven Central."""
    if url := os.environ.get("MAVEN_URL"):
        return url.rstrip("/")
    from jgo.maven import MavenContext

    return MavenContext(repo_cache=CACHE, local_repos=[]).remote_repos["central"].rstrip("/")


class _Unfit(Exception):
    """What was fetched is not the jar. Another attempt may help: a proxy may have cached a truncated one."""


class Download:
    """Fetches jars. An attempt that fails is repeated after a pause; whatever happens, only whole jars have their name.

    Args:
        cache: The folder of the jars.
        url: The Maven repository.
        jar_set: The set, for errors.
    """

    def __init__(self, cache: Path, url: str, jar_set: JarSet) -> None:
        self.cache = cache
        self.url = url
        self.jar_set = jar_set
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._bytes = 0
        self._trouble = ""

    def progress(self) -> str:
        """The downloaded amount, and the last failed attempt since the last call."""
        with self._lock:
            trouble, self._trouble = self._trouble, ""
            return f"{self._bytes / 1e6:.1f} MB" + (f" ({trouble})" if trouble else "")

    def fetch(self, coordinate: str, sha256: str) -> None:
        """Fetch a jar to its path in the cache.

        Args:
            coordinate: "group:artifact:version", or with ":classifier".
            sha256: The SHA-256 that the jar must have.

        Raises:
            StackError: All attempts failed, or another one cannot help. The text names the remedy.
        """
        from requests import RequestException
        from tenacity import (
            RetryCallState,
            RetryError,
            Retrying,
            retry_if_exception_type,
            sleep_using_event,
            stop_after_attempt,
            stop_when_event_set,
            wait_exponential_jitter,
        )

        def note(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            with self._lock:
                self._trouble = f"attempt {state.attempt_number} for {coordinate} failed: {_reason(error)}"

        try:
            for attempt in Retrying(
                retry=retry_if_exception_type((RequestException, _Unfit)),
                stop=stop_after_attempt(ATTEMPTS) | stop_when_event_set(self.stopped),
                wait=wait_exponential_jitter(initial=FIRST_PAUSE_SECONDS, max=30, jitter=FIRST_PAUSE_SECONDS),
                sleep=sleep_using_event(self.stopped),
                before_sleep=note,
            ):
                with attempt:
                    self._attempt(coordinate, sha256)
        except RetryError as error:
            raise self._failure(coordinate, error.last_attempt.exception()) from error
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise StackError(f"no disk space for jars in {self.cache}; free some and run it again") from error

    def _attempt(self, coordinate: str, sha256: str) -> None:
        import requests

        path = _path(self.cache, coordinate)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under another name until its content is checked: a download that is killed must not look like a jar.
        part = path.with_name(f"{path.name}.part")
        digest = hashlib.sha256()
        try:
            address = f"{self.url}/{path.relative_to(self.cache).as_posix()}"
            with requests.get(address, stream=True, timeout=TIMEOUT_SECONDS) as response, part.open("wb") as file:
                if response.status_code == 404:
                    raise StackError(
                        f"{coordinate} is not on {_shown(self.url)}; check MAVEN_URL and {self.jar_set.lock.name}"
                    )
                response.raise_for_status()
                for chunk in response.iter_content(1 << 16):
                    file.write(chunk)
                    digest.update(chunk)
                    with self._lock:
                        self._bytes += len(chunk)
            if digest.hexdigest() != sha256:
                raise _Unfit(f"its SHA-256 {digest.hexdigest()} is not the locked one")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _failure(self, coordinate: str, error: BaseException | None) -> StackError:
        if isinstance(error, _Unfit):
            return StackError(
                f"{coordinate} from {_shown(self.url)}: {error}, in {ATTEMPTS} attempts; if the error persists, do not "
                "trust the mirror or the proxy that it came from"
            )
        broker = "; or set KAFKA_BOOTSTRAP_SERVERS to use a broker of your own" if self.jar_set is KAFKA else ""
        return StackError(
            f"cannot fetch {coordinate} from {_shown(self.url)} {_proxy(self.url)} in {ATTEMPTS} attempts "
            f"({_reason(error)}): check the network, set HTTPS_PROXY to your proxy or MAVEN_URL to a mirror of Maven "
            f"Central, and run it again, which keeps the jars fetched so far{broker}"
        )


def _reason(error: BaseException | None) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code}"
    return "wrong content" if isinstance(error, _Unfit) else type(error).__name__


def _proxy(url: str) -> str:
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(url, get_environ_proxies(url))
    return f"through the proxy {_shown(proxy)}" if proxy else "without a proxy"


def _shown(url: str) -> str:
    """An address without a user and a password."""
    return re.sub(r"^(\w+://)?[^/@]*@", r"\1", url)


def _resolve(context, coordinate: str) -> Path:
    group, artifact, version, *more = coordinate.split(":")
    return context.project(group, artifact).at_version(version).artifact(*more).resolve()


def write_lock(cache: Path, jar_set: JarSet) -> None:
    """Resolve the set's coordinates and their dependencies, and write the lock."""
    import jgo
    from jgo.maven import MavenContext

    context = MavenContext(repo_cache=cache, local_repos=[], timeout=30)
    resolved: dict[str, str] = {}
    for group in jar_set.resolved:
        for artifact in jgo.resolve("+".join(group)):
            # An artifact of an earlier group keeps that group's version.
            classified = [artifact.version, *([artifact.classifier] if artifact.classifier else [])]
            resolved.setdefault(f"{artifact.groupId}:{artifact.artifactId}", ":".join(classified))
    kept = {name: v for name, v in resolved.items() if not any(fnmatch(name, p) for p in jar_set.unneeded)}
    coordinates = sorted({f"{name}:{version}" for name, version in kept.items()} | set(jar_set.alone))
    lines = [f"# The {jar_set.title}, and their SHA-256. Written by `make lock`."]
    lines += [f"{coordinate} {_sha256(_resolve(context, coordinate))}" for coordinate in coordinates]
    jar_set.lock.write_text("\n".join(lines) + "\n")
    print(f"{jar_set.lock}: {len(coordinates)} jars")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stack.jars", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("lock", help="resolve again and rewrite the locks")
    parser.parse_args()
    for jar_set in (KAFKA, SINK, S3, S3_SINK, REGISTRY):
        write_lock(CACHE, jar_set)


if __name__ == "__main__":
    main()
