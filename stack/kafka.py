"""Apache Kafka: one node that is broker and controller (KRaft), plaintext or SASL_SSL, on loopback."""

import base64
import json
import shutil
import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stack import jars, java, jvm, ports
from stack.errors import StackError
from stack.service import Program, Service

USER, MECHANISM = "stack", "SCRAM-SHA-512"
HEAP = "-Xmx768m"
SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "auto.create.topics.enable": "false",  # a typo in a topic's name must fail, as it does in production
    "group.initial.rebalance.delay.ms": "0",  # the default waits 3 s for more members of every new group
    # After a kill, the controller refuses the new process until the old session has expired: 9 s by default.
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "1000",
    "group.min.session.timeout.ms": "1000",  # lets a test see soon that a dead consumer leaves
    # There is one node: nothing can be replicated.
    "default.replication.factor": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # The default of 50 partitions each takes seconds at the first consumer and at every restart.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "1",
    # Each topic sets its own retention. Retention uses the records' timestamps: with the default of a week, replayed
    # old events would be deleted at once.
    "log.retention.ms": "-1",
    # Data are deleted, compacted and expired within seconds, so that tests do not wait.
    "log.initial.task.delay.ms": "1000",
    "log.retention.check.interval.ms": "5000",
    "log.segment.delete.delay.ms": "1000",
    "log.cleaner.backoff.ms": "1000",
}


class Kafka(Service):
    name = "kafka"
    external_variable = "KAFKA_BOOTSTRAP_SERVERS"
    ports = ("kafka", "controller")
    program_names = ("kafka",)

    def __init__(self, *args, security: str = "plaintext", connections: Mapping[str, dict[str, str]] | None = None):
        """Create the service.

        Args:
            *args: As for `Service`.
            security: "plaintext", "sasl_ssl", or "acls": as sasl_ssl, and what no ACL allows is refused.
            connections: {id of an Airflow connection: additional client settings}, besides kafka_default.

        Raises:
            StackError: `security` is unknown.
        """
        super().__init__(*args)
        self.connections = {"kafka_default": {}, **(connections or {})}
        if security not in ("plaintext", "sasl_ssl", "acls"):
            raise StackError(f"kafka_security is {security!r}; choose plaintext, sasl_ssl or acls")
        self.security = security
        self.has_logins = security != "plaintext"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def port(self) -> int:
        return self.state.get("port.kafka")

    @property
    def ca(self) -> Path:
        return self.folder / "tls" / "ca.pem"

    def prepare(self) -> None:
        self.java = java.find_java(self.report)
        self.jars = jars.classpath(jars.CACHE, self.report)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if self.has_logins and not self.ca.exists():
            _make_certificates(self.ca.parent)
        self.config = self.folder / "server.properties"
        self.config.touch(mode=0o600)
        self.config.write_text(jvm.properties(self.server_settings()))
        # A data directory is valid only with this marker: a start that was killed in the middle left an incomplete one.
        marker = self.folder / f"formatted.{self.security}"
        if not marker.exists():
            shutil.rmtree(self.data, ignore_errors=True)
            self._format()
            marker.touch()

    def server_settings(self) -> dict[str, str]:
        controller = f"127.0.0.1:{self.state.get('port.controller')}"
        settings = {
            **SETTINGS,
            # Set by configuration and not stored in the data, so that the port may change between starts.
            "controller.quorum.voters": f"1@{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"CLIENT://127.0.0.1:{self.port},CONTROLLER://{controller}",
            "advertised.listeners": f"CLIENT://127.0.0.1:{self.port}",
            "inter.broker.listener.name": "CLIENT",
            "log.dirs": str(self.data),
        }
        if not self.has_logins:
            return {**settings, "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT"}
        login = "org.apache.kafka.common.security.scram.ScramLoginModule"
        return {
            **settings,
            "listener.security.protocol.map": "CLIENT:SASL_SSL,CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": MECHANISM,
            "sasl.mechanism.inter.broker.protocol": MECHANISM,
            f"listener.name.client.{MECHANISM.lower()}.sasl.jaas.config": (
                f'{login} required username="{USER}" password="{self._password}";'
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.folder / "tls" / "server.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca),
            # ACLs can restrict other users; the broker connects to its controller without a user name.
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:{USER};User:ANONYMOUS",
            "allow.everyone.if.no.acl.found": str(self.security != "acls").lower(),
        }

    def _format(self) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # `--cluster-id=` with `=`: the id may begin with a dash.
        arguments = ["format", f"--cluster-id={cluster}", "-c", str(self.config)]
        if self.has_logins:
            arguments += ["--add-scram", f"{MECHANISM}=[name={USER},password={self._password}]"]
        done = subprocess.run(self._command("kafka.tools.StorageTool", *arguments), capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(self.data, ignore_errors=True)
            reason = ((done.stderr + done.stdout).strip().splitlines() or ["no output"])[-1]
            raise StackError(f"cannot format Kafka's data directory {self.data}: {reason}; correct it and run it again")

    def _command(self, main: str, *arguments: str) -> list[str]:
        return jvm.command(self.java, HEAP, self.jars, self.folder, main, *arguments)

    def programs(self) -> list[Program]:
        return [Program("kafka", self._command("kafka.Kafka", str(self.config)), stop_seconds=30)]

    def is_ready(self) -> bool:
        # Check the port first: librdkafka would log every refused connection.
        if ports.is_free(self.port):
            return False
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        try:
            admin = AdminClient({**self.client_config(), "log_level": 0}, logger=_quiet_logger())
            return bool(admin.list_topics(timeout=2).brokers)
        except KafkaException:
            return False

    def after_start(self) -> None:
        """Request a group's offsets, so that the group coordinator exists before anybody needs it.

        The first such request of a cluster creates the topic __consumer_offsets, and is answered NOT_COORDINATOR for a
        moment. On that answer an AdminClient crashes its process (librdkafka issue 5040).
        """
        from confluent_kafka import Consumer, KafkaException, TopicPartition

        consumer = Consumer({**self.client_config(), "group.id": "stack", "log_level": 0})
        deadline = time.monotonic() + 30
        try:
            while True:
                try:
                    consumer.committed([TopicPartition("none", 0)], timeout=5)
                    return
                except KafkaException as error:
                    if time.monotonic() > deadline:
                        reason = error.args[0].str()
                        raise StackError(f"Kafka's group coordinator does not answer: {reason}; see its log") from error
                time.sleep(0.1)
        finally:
            consumer.close()

    def client_config(self) -> dict[str, str]:
        """Settings of a confluent-kafka client."""
        if self.external:
            return {"bootstrap.servers": self.external}
        config = {"bootstrap.servers": f"127.0.0.1:{self.port}"}
        if self.has_logins:
            config |= {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": MECHANISM,
                "sasl.username": USER,
                "sasl.password": self._password,
                "ssl.ca.location": str(self.ca),
            }
        return config

    def environment(self) -> dict[str, str]:
        if not self.port and not self.external:
            return {}
        return {
            f"AIRFLOW_CONN_{name.upper()}": json.dumps({"conn_type": "kafka", "extra": self.client_config() | settings})
            for name, settings in self.connections.items()
        }

    def endpoints(self) -> dict[str, Any]:
        if not self.port and not self.external:
            return {"kafka": None}
        config = self.client_config()
        return {"kafka": {"bootstrap_servers": config["bootstrap.servers"], "client_config": config}}

    @property
    def _password(self) -> str:
        return self.state.secret("kafka.password")


def _make_certificates(folder: Path) -> None:
    import trustme
    from cryptography.hazmat.primitives import serialization

    folder.mkdir(mode=0o700, exist_ok=True)
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), password=None)
    # Kafka reads private keys only in PKCS#8, which trustme does not write.
    pkcs8 = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    server = folder / "server.pem"
    server.touch(mode=0o600)
    server.write_bytes(pkcs8 + b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    authority.cert_pem.write_to_path(folder / "ca.pem")  # last: its presence shows that the folder is complete


def _quiet_logger():
    import logging

    logger = logging.getLogger("stack.kafka.probe")
    logger.setLevel(logging.CRITICAL)
    return logger
