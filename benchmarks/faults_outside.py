"""Faults that kill no process of the project: effects of other programs, people and networks on a lane."""

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator

import psutil
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from benchmarks.bench_stack import BenchStack, say
from benchmarks.consumers import FAULTS, FAULTS_MESSAGES
from benchmarks.faults_traffic import Traffic
from benchmarks.kills import kill
from benchmarks.receivers import Webhook
from stack.supervisor import leftovers

CONSUMERS = (FAULTS, FAULTS_MESSAGES)
# Since Kafka 4.0 a broker refuses times more than an hour ahead, unless the topic allows them.
ANY_TIME = {"message.timestamp.after.max.ms": str(2**63 - 1)}


def alter(bench: BenchStack, topic: str, settings: dict[str, str]) -> None:
    """Change a topic's settings."""
    entries = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    admin = AdminClient(bench.stack.endpoints()["kafka"]["client_config"])
    for future in admin.incremental_alter_configs([resource]).values():
        future.result()


@contextlib.contextmanager
def refused_dead_letters(bench: BenchStack) -> Iterator[None]:
    """One of two dead-letter topics refuses every record."""
    topic = FAULTS.topics[0]
    alter(bench, topic.dead_letter_name, {"max.message.bytes": "10"})
    try:
        yield
    finally:
        alter(bench, topic.dead_letter_name, {"max.message.bytes": topic.dead_letter_config()["max.message.bytes"]})


@contextlib.contextmanager
def foreign_members(bench: BenchStack) -> Iterator[None]:
    """A foreign console consumer joins each consumer group, reads and commits."""
    ended = threading.Event()

    def visit(group: str, topics: list[str]) -> None:
        config = {**bench.stack.endpoints()["kafka"]["client_config"], "group.id": group, "auto.offset.reset": "latest"}
        visitor = Consumer(config)
        visitor.subscribe(topics)
        while not ended.is_set():
            visitor.poll(0.2)
        visitor.close()

    threads = [
        threading.Thread(target=visit, args=(consumer.group, [topic.name for topic in consumer.topics]), daemon=True)
        for consumer in CONSUMERS
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def moved_offsets(bench: BenchStack) -> Iterator[None]:
    """An outsider resets each group's committed offsets to the end of its topics, every ten seconds."""
    ended = threading.Event()

    def move() -> None:
        while not ended.wait(10):
            for consumer in CONSUMERS:
                config = {**bench.stack.endpoints()["kafka"]["client_config"], "group.id": consumer.group}
                somebody = Consumer(config)
                partitions = [TopicPartition(t.name, number) for t in consumer.topics for number in range(t.partitions)]
                ends = [somebody.get_watermark_offsets(partition, timeout=20)[1] for partition in partitions]
                moved = [TopicPartition(p.topic, p.partition, end) for p, end in zip(partitions, ends, strict=True)]
                somebody.commit(offsets=moved, asynchronous=False)
                somebody.close()

    thread = threading.Thread(target=move, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def open_transaction(bench: BenchStack, traffic: Traffic) -> Iterator[None]:
    """A producer keeps a transaction open on one partition: consumers cannot read beyond it there."""
    topic = FAULTS.topics[0].name
    config = {
        **bench.stack.endpoints()["kafka"]["client_config"],
        "transactional.id": "somebody",
        "transaction.timeout.ms": 600_000,
    }
    producer = Producer(config)
    producer.init_transactions(30)
    producer.begin_transaction()
    traffic.concerned.add((topic, 0))
    try:
        producer.produce(topic, b"not committed", partition=0)
        producer.flush(30)
        yield
    finally:
        producer.abort_transaction(30)
        traffic.concerned.discard((topic, 0))


@contextlib.contextmanager
def absent_webhook(webhook: Webhook) -> Iterator[None]:
    """The receiver of the effects' requests refuses connections."""
    webhook.go_away()
    try:
        yield
    finally:
        webhook.come_back()


def power_cut(bench: BenchStack) -> bool:
    """kill -9 of every process of the stack at once, then start it again."""
    processes = leftovers(bench.stack.folder)
    supervisor = bench.stack.supervisor.pid()
    # supervisord first: it would restart the other processes.
    pids = [*([supervisor] if supervisor else []), *(process.pid for process in processes)]
    killed = kill(pids)
    psutil.wait_procs(processes, timeout=10)
    bench.stack.up()
    return killed


def can_drop_packets() -> bool:
    """Whether this user can drop packets here; on Debian, root gets iptables installed."""
    if os.geteuid() != 0:
        return False
    if shutil.which("iptables") is None and shutil.which("apt-get") is not None:
        subprocess.run(["apt-get", "install", "-y", "-qq", "iptables"], capture_output=True, check=False)
    return shutil.which("iptables") is not None


def silent_database(bench: BenchStack, seconds: float = 60) -> bool:
    """Silently drop the packets of every open connection to the operational database; new connections work.

    Returns:
        False when no connection was open.
    """
    port = bench.operations.url.port
    query = (
        "select client_port from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid() and client_port > 0"
    )
    deadline = time.monotonic() + 60
    clients: set[int] = set()
    # The benchmark's own connections must stay.
    bench.operations.dispose()
    while not clients and time.monotonic() < deadline:
        clients = {client for (client,) in bench.query(query)}
        time.sleep(0.01)
    rules = [
        ["INPUT", "-i", "lo", "-p", "tcp", *ports, "-j", "DROP"]
        for client in clients
        for ports in (("--sport", str(client), "--dport", str(port)), ("--sport", str(port), "--dport", str(client)))
    ]
    added: list[list[str]] = []
    try:
        for rule in rules:
            subprocess.run(["iptables", "-w", "-A", *rule], check=True, capture_output=True)
            added.append(rule)
        say(f"{len(clients)} connections to the database are silent for {seconds:.0f} s")
        time.sleep(seconds)
    finally:
        for rule in added:
            subprocess.run(["iptables", "-w", "-D", *rule], check=False, capture_output=True)
    return bool(clients)
