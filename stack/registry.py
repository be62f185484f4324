"""The schema registry: Apicurio Registry on loopback, with its schemas in PostgreSQL. It speaks Confluent's API."""

import json
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from stack import jars, java, ports
from stack.postgres import DATABASES, Postgres
from stack.service import Program, Service

HEAP = "-Xmx400m"
MIN_JAVA_VERSION = 21
PATH = "/apis/ccompat/v7"


class Registry(Service):
    name = "registry"
    external_variable = "SCHEMA_REGISTRY_URL"
    ports = ("registry", "registry_management")
    program_names = ("registry",)
    ready_seconds = 300  # 5 s alone; much longer while the rest of the stack starts on a small machine

    def __init__(self, *args, postgres: Postgres):
        super().__init__(*args)
        self.postgres = postgres

    @property
    def url(self) -> str:
        return self.external or f"http://127.0.0.1:{self.state.get('port.registry')}{PATH}"

    def prepare(self) -> None:
        self.java = java.find_java(self.report, MIN_JAVA_VERSION)
        (archive,) = jars.classpath(jars.CACHE, self.report, jars.REGISTRY)
        self.program = jars.unpacked(archive)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        # A file, because other users of the machine can read the command line.
        self.config = self.folder / "application.properties"
        self.config.touch(mode=0o600)
        self.config.write_text("".join(f"{name}={value}\n" for name, value in self.settings().items()))

    def settings(self) -> dict[str, str]:
        url = urlsplit(self.postgres.database_url("schema_registry"))
        return {
            "quarkus.http.host": "127.0.0.1",
            "quarkus.http.port": str(self.state.get("port.registry")),
            # Health and metrics have a port of their own, by default on all interfaces.
            "quarkus.management.host": "127.0.0.1",
            "quarkus.management.port": str(self.state.get("port.registry_management")),
            "apicurio.storage.kind": "sql",
            "apicurio.storage.sql.kind": "postgresql",
            "apicurio.datasource.url": f"jdbc:postgresql://127.0.0.1:{url.port}/{DATABASES['schema_registry']}",
            "apicurio.datasource.username": str(url.username),
            "apicurio.datasource.password": str(url.password),
            # The log of each request would fill the disk.
            "quarkus.http.access-log.enabled": "false",
        }

    def programs(self) -> list[Program]:
        command = [str(self.java), HEAP, "-XX:TieredStopAtLevel=1", f"-Dquarkus.config.locations={self.config}"]
        command += ["-jar", str(self.program / "quarkus-run.jar")]
        return [Program("registry", command, directory=self.program)]

    def is_ready(self) -> bool:
        if not self.external and ports.is_free(self.state.get("port.registry")):
            return False
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=1):
                return True
        except OSError:
            return False

    def environment(self) -> dict[str, str]:
        if not self.state.get("port.registry") and not self.external:
            return {}
        return {"AIRFLOW_CONN_SCHEMA_REGISTRY": json.dumps({"conn_type": "http", "host": self.url})}

    def endpoints(self) -> dict[str, Any]:
        if not self.state.get("port.registry") and not self.external:
            return {"registry": None}
        return {"registry": {"url": self.url}}
