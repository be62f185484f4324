"""Kafka Connect: one distributed worker with the Apache Iceberg sink, on loopback."""

import json
import shutil
import urllib.error
import urllib.request
from typing import Any

from stack import jars, java, jvm, ports
from stack.kafka import Kafka
from stack.object_store import S3, store_of
from stack.service import Program, Service

HEAP = "-Xmx512m"
SETTINGS = {
    "group.id": "connect",
    # Each connector sets its own converters; these defaults only have to exist.
    "key.converter": "org.apache.kafka.connect.storage.StringConverter",
    "value.converter": "org.apache.kafka.connect.storage.StringConverter",
    "config.storage.topic": "_connect-configs",
    "offset.storage.topic": "_connect-offsets",
    "status.storage.topic": "_connect-status",
    # There is one broker.
    "config.storage.replication.factor": "1",
    "offset.storage.replication.factor": "1",
    "status.storage.replication.factor": "1",
    # The defaults of 25 and 5 partitions are for clusters, and take seconds at every start.
    "offset.storage.partitions": "1",
    "status.storage.partitions": "1",
    # The plugin declares what it contains. Scanning all of its classes instead takes 20 s.
    "plugin.discovery": "service_load",
    # How long a sink's task waits for records before it polls its control topic. With the default, the last records of
    # a burst would land 60 s later.
    "offset.flush.interval.ms": "1000",
    # Lets a connector's configuration set timeouts of its consumer.
    "connector.client.config.override.policy": "All",
    # A killed worker leaves its group after 6 s. The next worker starts its connectors at once, without a delay for the
    # return of other workers: there is only one.
    "session.timeout.ms": "6000",
    "heartbeat.interval.ms": "2000",
    "scheduled.rebalance.max.delay.ms": "0",
    # Passwords stay in the worker's environment: configurations contain ${env:NAME}, so the REST API and Connect's
    # topics show no password. Only variables of this pattern can be read, because anybody who can reach the REST API
    # can read them.
    "config.providers": "env",
    "config.providers.env.class": "org.apache.kafka.common.config.provider.EnvVarConfigProvider",
    "config.providers.env.param.allowlist.pattern": "^LANDING_[A-Z0-9_]+$",
}


class Connect(Service):
    name = "connect"
    external_variable = "KAFKA_CONNECT_URL"
    ports = ("connect",)
    program_names = ("connect",)

    def __init__(self, *args, kafka: Kafka):
        super().__init__(*args)
        self.kafka = kafka

    @property
    def url(self) -> str:
        return self.external or f"http://127.0.0.1:{self.state.get('port.connect')}"

    def prepare(self) -> None:
        self.java = java.find_java(self.report)
        self.classpath = jars.classpath(jars.CACHE, self.report)
        sink = jars.classpath(jars.CACHE, self.report, jars.SINK)
        if store_of(self.state) == S3:
            sink += jars.classpath(jars.CACHE, self.report, jars.S3_SINK)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        plugin = self.folder / "plugins" / "iceberg"
        shutil.rmtree(plugin, ignore_errors=True)
        plugin.mkdir(parents=True)
        for jar in sink:
            (plugin / jar.name).symlink_to(jar)
        self.config = self.folder / "worker.properties"
        self.config.touch(mode=0o600)
        self.config.write_text(jvm.properties(self.worker_settings()))

    def worker_settings(self) -> dict[str, str]:
        port = self.state.get("port.connect")
        clients = java_client_settings(self.kafka.client_config())
        return {
            **SETTINGS,
            "listeners": f"http://127.0.0.1:{port}",
            "rest.advertised.host.name": "127.0.0.1",
            "rest.advertised.port": str(port),
            "plugin.path": str(self.folder / "plugins"),
            # The worker's own clients, and those that it creates for connectors. The sink creates further clients for
            # its control topic, and reads the first set from this file.
            **{f"{prefix}{k}": v for prefix in ("", "producer.", "consumer.", "admin.") for k, v in clients.items()},
        }

    def programs(self) -> list[Program]:
        main = "org.apache.kafka.connect.cli.ConnectDistributed"
        command = jvm.command(self.java, HEAP, self.classpath, self.folder, main, str(self.config))
        return [Program("connect", command, stop_seconds=30)]

    def is_ready(self) -> bool:
        if not self.external and ports.is_free(self.state.get("port.connect")):
            return False
        try:
            # Unlike `/`, this is answered only when the worker has joined its group.
            with urllib.request.urlopen(f"{self.url}/connectors", timeout=1):
                return True
        except (OSError, urllib.error.URLError):
            return False

    def environment(self) -> dict[str, str]:
        if not self.state.get("port.connect") and not self.external:
            return {}
        return {"AIRFLOW_CONN_KAFKA_CONNECT": json.dumps({"conn_type": "http", "host": self.url})}

    def endpoints(self) -> dict[str, Any]:
        if not self.state.get("port.connect") and not self.external:
            return {"connect": None}
        return {"connect": {"url": self.url}}


def java_client_settings(config: dict[str, str]) -> dict[str, str]:
    """Convert settings of a confluent-kafka client to those of a Java client."""
    settings = {"bootstrap.servers": config["bootstrap.servers"]}
    if config.get("security.protocol") == "SASL_SSL":
        login = "org.apache.kafka.common.security.scram.ScramLoginModule"
        user, password = config["sasl.username"], config["sasl.password"]
        settings |= {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": config["sasl.mechanism"],
            "sasl.jaas.config": f'{login} required username="{user}" password="{password}";',
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": config["ssl.ca.location"],
        }
    return settings
