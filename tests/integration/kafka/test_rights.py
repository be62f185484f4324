"""A broker that refuses what no ACL allows, and a database with three roles: exactly the printed rights are enough."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AdminClient,
    NewTopic,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import ProgrammingError

from include.streams import Package, Project, Registry, rights
from include.streams.contracts import Topic
from include.streams.contracts.repairs import Repairs
from include.streams.kafka import replay as replaying
from include.streams.kafka import tasks
from include.streams.kafka.consumers import Consumer
from include.streams.kafka.messages import Message
from include.streams.kafka.offsets import GroupOffsets
from include.streams.kafka.topics import create_topics
from include.streams.kafka.watch import check_consumer
from include.streams.operations import database, outbox
from include.streams.operations.database import begin
from include.streams.operations.migrate import OWNER_CONN_ID, upgrade
from stack.postgres import SUPERUSER
from tests.clients import producer_to
from tests.conftest import PROJECT, start_stack
from tests.integration.kafka import conftest
from tests.integration.kafka.conftest import Order, deliver_now, numbers, open_claims, order

pytestmark = pytest.mark.integration

PASSWORD = "least-rights"
SQL = PROJECT / "deploy" / "database_roles.sql"
DECLARED: dict[str, Any] = {}


@pytest.fixture(scope="module")
def broker(tmp_path_factory) -> Iterator[dict[str, Any]]:
    """The settings of the superuser of a broker that refuses what no ACL allows."""
    stack = start_stack(tmp_path_factory.mktemp("rights"), ("kafka",), kafka_security="acls")
    config = stack.endpoints()["kafka"]["client_config"]
    admin = AdminClient(config)
    credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    users = [UserScramCredentialUpsertion(name, credential, PASSWORD.encode()) for name in (*rights.Part, "stranger")]
    for future in admin.alter_user_scram_credentials(users).values():
        future.result(20)
    yield config
    stack.remove()


@pytest.fixture(scope="module")
def project() -> Project:
    """A project with a consumer of one topic whose effect writes to another."""
    name = f"orders.{uuid.uuid4().hex[:8]}"
    topics = [
        Topic(n, Order, key="number", partitions=2, retention=timedelta(days=1)) for n in (name, f"{name}.booked")
    ]
    consumer = Consumer(
        name=f"consumer-{name}",
        topics=(topics[0],),
        effect=f"{__name__}:book",
        max_messages_per_claim=100,
        chunk_size=2,
    )
    return Project(Package(name="shop", topics=Registry(*topics), consumers=(consumer,)))


def book(connection, message: Message) -> None:
    conftest.record_effect(connection, message)
    outbox.add_message(connection, consumer=DECLARED["consumer"], topic=DECLARED["topic"], event=message.event)


@pytest.fixture(scope="module")
def admin_url(services) -> URL:
    """The address of the database server as its superuser."""
    return make_url(services.postgres.url(SUPERUSER, "postgres"))


def run_sql(url: URL, statement: str) -> None:
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def roles(admin_url) -> Iterator[Callable[[str], str]]:
    """A database with the three roles; returns the definition of an Airflow connection for a role."""
    name = f"rights_{uuid.uuid4().hex[:8]}"
    run_sql(admin_url, f"create database {name}")
    own = admin_url.set(database=name)
    for _ in range(2):
        run_sql(own, SQL.read_text())
    for role in ("owner", "run", "read"):
        run_sql(own, f"alter role streams_{role} password '{PASSWORD}'")

    def connection(role: str) -> str:
        return json.dumps(
            {
                "conn_type": "postgres",
                "host": own.host,
                "port": own.port,
                "login": f"streams_{role}",
                "password": PASSWORD,
                "schema": name,
            }
        )

    yield connection
    database._engine.cache_clear()
    run_sql(admin_url, f"drop database {name} with (force)")
    for role in ("owner", "run", "read"):
        run_sql(admin_url, f"drop role streams_{role}")


def login(broker: dict[str, Any], user: str) -> dict[str, Any]:
    return {**broker, "sasl.username": user, "sasl.password": PASSWORD}


@pytest.fixture
def act_as(broker, roles, monkeypatch) -> Callable[..., None]:
    """Let the Airflow connections be those of a part, with a role of the database."""

    def act(user: str, role: str = "run") -> None:
        connection = {"conn_type": "kafka", "extra": login(broker, user)}
        monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps(connection))
        monkeypatch.setenv("AIRFLOW_CONN_OPERATIONS_DB", roles(role))
        database._engine.cache_clear()

    monkeypatch.setenv(f"AIRFLOW_CONN_{OWNER_CONN_ID.upper()}", roles("owner"))
    yield act
    monkeypatch.undo()
    database._engine.cache_clear()


@pytest.fixture
def granted(broker, project, monkeypatch) -> list[str]:
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_ADMIN", json.dumps({"conn_type": "kafka", "extra": broker}))
    principals = {part: f"User:{part}" for part in rights.Part}
    return rights.apply(rights.rights(project), principals, "kafka_admin")


def test_the_parts_work_with_their_rights_and_no_others(granted, act_as, project, broker):
    consumer, (orders, booked) = project.consumers[0], list(project.topics)
    DECLARED.update(consumer=consumer.name, topic=booked)
    act_as("tasks")
    # prepare_services: topics by the tasks' user, tables by the owner.
    assert upgrade()
    assert len(create_topics(project.topics)) == 4
    assert create_topics(project.topics) == []
    act_as("tasks", "owner")
    with begin() as connection:
        connection.execute(
            text('create table test_effects (topic text, "partition" int, "offset" bigint, number text)')
        )

    # A producer may write, and read nothing.
    act_as("producers")
    producer = producer_to({**login(broker, "producers"), "acks": "all"}, orders.name)
    key = b"a"
    for value in (order("a"), order("b"), order("c").replace(b"number", b"id")):
        producer.produce(orders.name, value, key=key, partition=0)
    assert producer.flush(20) == 0
    with pytest.raises(KafkaException, match=r"(?i)authoriz"):
        tasks.claim_messages(consumer, "as a producer")

    # The triggerer sees the lag, and may not write.
    act_as("triggerer")

    async def lag() -> int:
        with GroupOffsets(consumer.group) as group:
            return sum(offsets.lag for offsets in (await group.fetch_offsets([orders.name])).values())

    assert asyncio.run(lag()) == 3
    refusals: list[Any] = []
    writer = producer_to({**login(broker, "triggerer"), "acks": "all"}, orders.name)
    writer.produce(orders.name, order("forged"), on_delivery=lambda error, _: refusals.append(error))
    assert writer.flush(20) == 0
    assert [error.name() for error in refusals] == ["TOPIC_AUTHORIZATION_FAILED"]

    # Tasks: claim, effects with outbox, a dead letter, its replay, the checks of maintain.
    act_as("tasks")
    for chunk in tasks.claim_messages(consumer, "run"):
        tasks.handle_chunk(consumer, chunk, "run")
    assert sorted(numbers(orders)) == ["a", "b"]
    assert open_claims(consumer) == 0
    deliver_now(consumer)
    repairs = Repairs()
    repairs.renamed(orders, {"id": "number"})
    selection = {"topic": orders.name, "limit": 10, "dry_run": False, "again": False}
    report = replaying.replay(
        replaying.plan_replay(selection, project.topics),
        selection,
        "replay",
        topics=project.topics,
        repairs=repairs,
    )
    assert [(count["outcome"], count["count"]) for count in report["counts"]] == [("replayed", 1)]
    for chunk in tasks.claim_messages(consumer, "second"):
        tasks.handle_chunk(consumer, chunk, "second")
    assert sorted(numbers(orders)) == ["a", "b", "c"]
    check_consumer(consumer)
    project.prune({"inbox_days": 480, "claims_days": 90, "outbox_days": 30, "alarms_days": 365}, seconds=20)
    with begin() as connection:
        assert connection.scalar(text("select count(*) from outbox where state = 'delivered'")) == 3
        opened = set(connection.scalars(text("select kind from alarms")))
        assert not opened & {"topic_forbidden", "commit_refused", "partitions_away", "dead_letters_wait"}

    # And nothing else: no other topic, no table of their own, no schema change.
    admin = AdminClient(login(broker, "tasks"))
    with pytest.raises(KafkaException, match=r"(?i)authoriz"):
        admin.create_topics([NewTopic("other", 1, 1)])["other"].result(20)
    with pytest.raises(KafkaException, match=r"(?i)authoriz"):
        admin.delete_topics([orders.name])[orders.name].result(20)
    for statement in ("create table own (n int)", "alter table inbox add column n int", "drop table inbox"):
        with pytest.raises(ProgrammingError, match=r"(?i)permission denied|must be owner"), begin() as connection:
            connection.execute(text(statement))
    act_as("stranger", "read")
    with begin() as connection:
        assert connection.scalar(text("select count(*) from inbox")) == 4
    for statement in ("delete from inbox", "update alarms set closed_at = now()", "create table own (n int)"):
        with pytest.raises(ProgrammingError, match=r"(?i)permission denied"), begin() as connection:
            connection.execute(text(statement))
    act_as("stranger")
    with pytest.raises(KafkaException, match=r"(?i)authoriz"):
        tasks.claim_messages(consumer, "as a stranger")


def test_roles_take_over_a_database_that_one_user_has_filled(admin_url, roles, monkeypatch):
    name = f"rights_{uuid.uuid4().hex[:8]}"
    run_sql(admin_url, f"create database {name}")
    own = admin_url.set(database=name)
    try:
        superuser = json.loads(roles("owner")) | {"login": own.username, "password": own.password, "schema": name}
        monkeypatch.setenv("AIRFLOW_CONN_OLD_DATABASE", json.dumps(superuser))
        assert upgrade("old_database")
        run_sql(own, SQL.read_text())
        owner = json.loads(roles("owner")) | {"schema": name}
        monkeypatch.setenv("AIRFLOW_CONN_NEW_OWNER", json.dumps(owner))
        assert upgrade("new_owner") == []
        with begin("new_owner") as connection:
            connection.execute(text("alter table inbox add column later int"))
            connection.execute(text("create table later_table (n int)"))
        monkeypatch.setenv("AIRFLOW_CONN_NEW_RUN", json.dumps(owner | {"login": "streams_run"}))
        with begin("new_run") as connection:
            connection.execute(text("insert into later_table values (1)"))
            connection.execute(text("insert into consumers (name) values ('a')"))
    finally:
        database._engine.cache_clear()
        run_sql(admin_url, f"drop database {name} with (force)")


def test_the_command_prints_every_right_of_the_project():
    done = subprocess.run(
        [sys.executable, "-m", "include.streams", "rights", "tasks=User:airflow", "triggerer=User:airflow"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines
    assert all(
        line.startswith("kafka-acls --bootstrap-server BROKER --add --allow-principal User:airflow ") for line in lines
    )
