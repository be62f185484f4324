"""The lanes behind PgBouncer in transaction mode: two transactions of a client may use two server connections."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import text

from include.streams.kafka import tasks
from include.streams.landing.planning import claim_landed
from include.streams.landing.repair import repair
from include.streams.landing.verification import verify
from include.streams.operations import outbox
from include.streams.operations.database import begin, engine
from include.streams.operations.migrate import upgrade
from tests.integration.kafka.conftest import (
    admin,
    deliver_now,
    effects,
    make_consumer,
    make_topic,
    operations,
    order,
    read_all,
    send,
)
from tests.integration.landing.conftest import land, landed_rows, landed_topic, lane, send_orders, sink_commits

__all__ = ["admin", "landed_topic", "lane", "make_consumer", "make_topic", "operations", "send", "send_orders"]

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("operations", "behind_pgbouncer")]


def advisory_locks(services) -> int:
    """How many locks are held or waited for in the operational database, read without PgBouncer."""
    with psycopg.connect(services.endpoints()["databases"]["operations_db"]) as connection:
        result = connection.execute(
            "select count(*) from pg_locks join pg_database on pg_database.oid = pg_locks.database "
            "where locktype = 'advisory' and datname = current_database()"
        )
        return result.fetchone()[0]


def test_an_empty_database_is_migrated(new_database):
    database = new_database()
    assert upgrade(database)
    assert upgrade(database) == []
    engine(database).dispose()


def test_statements_can_be_repeated_on_any_server_connection(services):
    def ask(number: int) -> set[int]:
        pids = set()
        for _ in range(20):
            with begin() as connection:
                connection.execute(text("select count(*) from claims where consumer = :name"), {"name": str(number)})
                pids.add(connection.scalar(text("select pg_backend_pid()")))
        return pids

    with ThreadPoolExecutor(4) as pool:
        used = set().union(*pool.map(ask, range(4)))
    assert len(used) > 1


def test_messages_are_claimed_handled_and_delivered_once(make_topic, make_consumer, send):
    topic = make_topic(partitions=1)
    consumer = make_consumer(topic)
    # More runs than psycopg's threshold for preparing a statement.
    for number in range(7):
        send(topic, order(number), order(f"repeated {number % 2}"))
        tasks.claim_messages(consumer, f"run {number}")
    assert sorted(number for *_, number in effects(topic)) == sorted([*"0123456", "repeated 0", "repeated 1"])


def test_a_row_of_the_outbox_is_delivered_once(make_topic, make_consumer):
    topic = make_topic(partitions=1)
    consumer = make_consumer(topic)
    with begin() as connection:
        outbox.add_record(connection, consumer=consumer.name, topic=topic.name, key=None, value=b"once", headers=[])
    for _ in range(2):
        deliver_now(consumer)
    assert [record.value() for record in read_all(topic.name)] == [b"once"]


def test_concurrent_runs_claim_every_message_once(make_topic, make_consumer, send):
    topic = make_topic(partitions=2)
    consumer = make_consumer(topic, max_messages_per_claim=10, chunk_size=10)
    for partition in range(2):
        send(topic, *(order(f"{partition}-{number}") for number in range(20)), partition=partition)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda run: tasks.claim_messages(consumer, f"run {run}"), range(6)))
    assert [row[:2] for row in effects(topic)] == [
        (partition, offset) for partition in range(2) for offset in range(20)
    ]


def test_two_concurrent_repairs_repair_a_gap_once(landed_topic, send_orders, lane, services):
    topic = landed_topic(partitions=1)
    send_orders(topic, 0, 30)
    land(topic, 0, range(0, 10), range(20, 30))
    sink_commits(topic, _0=30)
    due = verify(topic, grace=lane(topic).landing_grace).due
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: repair(topic, due), range(3)))
    assert [offset for _, offset, _ in landed_rows(topic)] == list(range(30))
    assert claim_landed(lane(topic), "run")
    assert advisory_locks(services) == 0


def test_limits_hold_in_each_transaction_and_reach_no_other_client(pgbouncer):
    for _ in range(3):
        with begin() as connection:
            assert connection.scalar(text("show lock_timeout")) == "1min"
    with psycopg.connect(pgbouncer, autocommit=True) as other:
        for _ in range(3):
            assert other.execute("show lock_timeout").fetchone() == ("0",)
