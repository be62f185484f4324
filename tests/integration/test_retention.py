"""Old finished rows are deleted, open rows stay, and every prune uses an index."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import select, text
from sqlalchemy.dialects import postgresql

from include.streams.operations.database import begin
from include.streams.operations.migrate import upgrade
from include.streams.operations.retention import Rule, prune, rules
from include.streams.operations.tables import claims
from tests import forks
from tests.unit.contracts.orders import TOPICS

pytestmark = pytest.mark.integration

DAYS = {"inbox_days": 480, "claims_days": 90, "outbox_days": 30, "alarms_days": 365}

# (table, statement with :age and the consumer's :name, whether its row is deleted when it is old)
ROWS = {
    "a handled message": (
        "inbox",
        "insert into inbox values (:name, '', 0, 0, '', '', 'e', 'handled', null, null, 'run', now() - :age)",
        True,
    ),
    "a dead letter": (
        "inbox",
        "insert into inbox values (:name, '', 0, 1, '', '', null, 'dead_letter', 'r', 'd', 'run', now() - :age)",
        True,
    ),
    "a replay": (
        "replays",
        'insert into replays (topic_id, partition, "offset", topic, outcome, run_id, recorded_at) '
        "values (:name, 0, 0, '', 'replayed', 'run', now() - :age)",
        True,
    ),
    "a closed claim": (
        "claims",
        "insert into claims (consumer, run_id, claimed_at, closed_at) "
        "values (:name, 'closed', now() - :age, now() - :age)",
        True,
    ),
    "an open claim": (
        "claims",
        "insert into claims (consumer, run_id, claimed_at) values (:name, 'open', now() - :age)",
        False,
    ),
    "a delivered row": (
        "outbox",
        "insert into outbox (consumer, kind, destination, body, state, created_at, delivered_at) "
        "values (:name, 'message', 't', '', 'delivered', now() - :age, now() - :age)",
        True,
    ),
    "a skipped row": (
        "outbox",
        "insert into outbox (consumer, kind, destination, body, state, created_at) "
        "values (:name, 'request', 'c', '', 'skipped', now() - :age)",
        True,
    ),
    "a pending row": (
        "outbox",
        "insert into outbox (consumer, kind, destination, body, created_at) "
        "values (:name, 'request', 'c', '', now() - :age)",
        False,
    ),
    "a failed row": (
        "outbox",
        "insert into outbox (consumer, kind, destination, body, state, created_at) "
        "values (:name, 'request', 'c', '', 'failed', now() - :age)",
        False,
    ),
    "a closed alarm": (
        "alarms",
        "insert into alarms (source, kind, message, opened_at, closed_at) "
        "values (:name, 'lag', '', now() - :age, now() - :age)",
        True,
    ),
    "an open alarm": (
        "alarms",
        "insert into alarms (source, kind, message, opened_at) values (:name, 'age', '', now() - :age)",
        False,
    ),
}
OWNER = {"alarms": "source", "replays": "topic_id"}


@pytest.fixture
def consumer(services) -> Iterator[str]:
    """A consumer name for all rows of a test, which are deleted at the end."""
    upgrade()
    name = f"consumer-{uuid.uuid4().hex[:8]}"
    execute("insert into consumers values (:name)", name=name)
    yield name
    for table in ("inbox", "replays", "claims", "positions", "outbox", "alarms"):
        execute(f"delete from {table} where {OWNER.get(table, 'consumer')} = :name", name=name)


def execute(statement: str, **parameters: object) -> None:
    with begin() as connection:
        connection.execute(text(statement), parameters)


def count(table: str, name: str) -> int:
    with begin() as connection:
        query = text(f"select count(*) from {table} where {OWNER.get(table, 'consumer')} = :name")
        return connection.scalar(query, {"name": name}) or 0


def prune_old() -> dict[str, int]:
    return prune(rules(TOPICS, **DAYS), seconds=60)


@pytest.mark.parametrize("what", ROWS)
def test_old_rows_are_deleted_unless_they_are_open(consumer, what):
    table, statement, goes = ROWS[what]
    execute(statement, name=consumer, age=timedelta(days=1000))
    prune_old()
    assert count(table, consumer) == (0 if goes else 1)


@pytest.mark.parametrize("what", ROWS)
def test_newer_rows_stay(consumer, what):
    table, statement, _ = ROWS[what]
    kept = {"inbox": 480, "replays": 379, "claims": 90, "outbox": 30, "alarms": 365}[table]
    execute(statement, name=consumer, age=timedelta(days=kept, hours=-1))
    prune_old()
    assert count(table, consumer) == 1


def test_ranges_are_deleted_with_their_claim_and_positions_stay(consumer):
    execute("insert into positions values (:name, 't', 0, 'id', 7)", name=consumer)
    table, statement, _ = ROWS["a closed claim"]
    execute(statement, name=consumer, age=timedelta(days=1000))
    for ranges, values in (("claim_ranges", "id, 't', 0, 'id', 0, 0, 7"), ("handled_ranges", "id, 't', 0, 0, 7")):
        execute(f"insert into {ranges} select {values} from claims where consumer = :name", name=consumer)
    prune_old()
    assert (count("positions", consumer), count(table, consumer)) == (1, 0)
    with begin() as connection:
        for ranges in ("claim_ranges", "handled_ranges"):
            orphans = f"select count(*) from {ranges} where claim_id not in (select id from claims)"
            assert connection.scalar(text(orphans)) == 0


def many_closed_claims(name: str, number: int) -> Rule:
    execute(
        "insert into claims (consumer, run_id, closed_at) "
        "select :name, n, now() - interval '2 days' from generate_series(1, :number) n",
        name=name,
        number=number,
    )
    return Rule(claims, "closed_at", timedelta(days=1), "closed_at is not null")


def test_two_concurrent_prunes_share_the_work(consumer):
    # Rows that other tests have left would be counted.
    prune([many_closed_claims(consumer, 1)], seconds=60)
    rule = many_closed_claims(consumer, 3_000)
    removed: list[int] = []

    def run() -> None:
        removed.append(prune([rule], seconds=60, batch_rows=50)["claims"])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Rows that the other prune had locked at the end are left to the next prune.
    assert sum(removed) + count("claims", consumer) == 3_000
    assert all(removed)
    prune([rule], seconds=60)
    assert count("claims", consumer) == 0


def test_a_prune_stops_in_time_and_the_next_continues(consumer):
    rule = many_closed_claims(consumer, 100)
    assert prune([rule], seconds=0) == {"claims": 0}
    assert prune([rule], seconds=60, batch_rows=7)["claims"] >= 100
    assert count("claims", consumer) == 0


def test_a_locked_row_is_skipped(consumer):
    rule = many_closed_claims(consumer, 20)
    with begin() as connection:
        held = "select id from claims where consumer = :name and run_id = '5' for update"
        connection.execute(text(held), {"name": consumer})
        prune([rule], seconds=60)
        assert count("claims", consumer) == 1
    prune([rule], seconds=60)
    assert count("claims", consumer) == 0


KILLED = """
from datetime import timedelta
from include.streams.operations.retention import Rule, prune
from include.streams.operations.tables import claims

prune([Rule(claims, "closed_at", timedelta(days=1), "closed_at is not null")], seconds=600, batch_rows=1)
"""


def test_a_killed_prune_leaves_nothing_half_done(consumer):
    rule = many_closed_claims(consumer, 20_000)
    execute("insert into claims (consumer, run_id) values (:name, 'open')", name=consumer)
    process = forks.start(KILLED)
    try:
        until = time.monotonic() + 60
        while count("claims", consumer) > 19_900:
            assert process.is_alive()
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        process.kill()
        process.join()
    assert 1 < count("claims", consumer) < 20_000, "it was not killed in the middle"
    prune([rule], seconds=60)
    with begin() as connection:
        left = connection.execute(text("select run_id from claims where consumer = :name"), {"name": consumer})
        assert list(left.scalars()) == ["open"]


@pytest.mark.parametrize("table", ["inbox", "replays", "claims", "outbox", "alarms"])
def test_every_prune_uses_an_index_in_its_order(consumer, table):
    (rule,) = (rule for rule in rules(TOPICS, **DAYS) if rule.table.name == table)
    some = select(rule.table.c[rule.column]).where(rule.due()).order_by(rule.table.c[rule.column]).limit(10)
    literal = some.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
    with begin() as connection:
        # Tables are small here, so these settings make the planner use an index if it can.
        connection.execute(text("set local enable_seqscan = off"))
        connection.execute(text("set local enable_sort = off"))
        plan = "\n".join(connection.execute(text(f"explain {literal}")).scalars())
    assert "Index" in plan, plan
    assert "Seq Scan" not in plan, plan
    assert "Sort" not in plan, plan
