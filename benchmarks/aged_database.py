"""The operational database as it is after a year: rows of handled messages and of closed claims."""

from __future__ import annotations

from sqlalchemy import Engine, text

# Rows of the measured consumer and topic, at far lower offsets; a third are of another consumer.
INBOX = """
insert into inbox (consumer, topic_id, partition, "offset", topic, contract, event_id, outcome, run_id, recorded_at)
select case when n % 3 = 0 then 'other' else cast(:consumer as text) end, cast(:topic_id as text), n % 3,
       n - 100000000, cast(:topic as text), 'Probe',
       'old-' || n, 'handled', 'old-' || (n / 10), now() - interval '1 year' + n * interval '6 seconds'
from generate_series(cast(:first as bigint), cast(:last as bigint)) n
"""
CLAIMS = """
with made as (
    insert into claims (consumer, run_id, claimed_at, closed_at)
    select cast(:consumer as text), 'old-' || n, now() - interval '1 year' + n * interval '1 minute',
           now() - interval '1 year' + n * interval '1 minute'
    from generate_series(cast(:first as bigint), cast(:last as bigint)) n returning id, run_id
), ranges as (
    insert into claim_ranges (claim_id, topic, partition, topic_id, start_offset, readable_from, end_offset)
    select id, cast(:topic as text), number % 3, cast(:topic_id as text), number * 10, number * 10, number * 10 + 10
    from (select id, substr(run_id, 5)::bigint - 100000000 as number from made) made
    returning claim_id, topic, partition, start_offset, end_offset
)
insert into handled_ranges (claim_id, topic, partition, start_offset, end_offset)
select claim_id, topic, partition, start_offset, end_offset from ranges
"""
AT_ONCE = 500_000


def age(engine: Engine, *, consumer: str, topic: str, topic_id: str, inbox: int, claims: int) -> None:
    """Add rows to the inbox, and closed claims with their ranges."""
    values = {"consumer": consumer, "topic": topic, "topic_id": topic_id}
    with engine.begin() as connection:
        for name in (consumer, "other"):
            statement = "insert into consumers (name) values (:name) on conflict do nothing"
            connection.execute(text(statement), {"name": name})
    for statement, count in ((INBOX, inbox), (CLAIMS, claims)):
        for first in range(1, count + 1, AT_ONCE):
            with engine.begin() as connection:
                connection.execute(text(statement), {**values, "first": first, "last": min(count, first + AT_ONCE - 1)})
    # Rows that are inserted over a year are vacuumed in between.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum (analyze)"))


def rejuvenate(engine: Engine) -> None:
    """Remove what `age` has added."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("delete from claims where run_id like 'old-%'"))
        connection.execute(text("delete from inbox where run_id like 'old-%'"))
        for table in ("inbox", "claims", "claim_ranges", "handled_ranges"):
            connection.execute(text(f"vacuum (full, analyze) {table}"))
