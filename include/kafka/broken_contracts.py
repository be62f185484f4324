"""An alarm for a producer that breaks its contract: most of the latest messages are dead letters.

Each of them is settled, so all runs are green, and nothing else shows that a topic has nothing good in it.
"""

from collections.abc import Mapping

from sqlalchemy import Connection, text

from include.contracts.violations import FRAMED
from include.kafka.consumers import Consumer, Shape
from include.operations.alarms import close_alarm, open_alarm

ALARM = "many_dead_letters"
# The latest messages that are looked at, over all partitions, and those of each at least.
LATEST, LATEST_OF_A_PARTITION = 200, 5
# Fewer dead letters are no pattern.
MIN_DEAD_LETTERS = 10
# Opens beyond this share and closes at half of it, so that a producer around it is one episode.
MAX_SHARE = 0.5

# By offset, from the end of what was claimed: the primary key finds these rows, however many others there are.
_LATEST = text(
    """
    with partitions as (
        select topic_id, partition, next_offset, greatest(:latest / count(*) over (), :of_a_partition) as latest
        from positions where consumer = :consumer
    )
    select i.outcome, i.reason, i.detail
    from partitions p join inbox i
        on i.consumer = :consumer and i.topic_id = p.topic_id and i.partition = p.partition
        and i.offset >= p.next_offset - p.latest and i.offset < p.next_offset
        and i.recorded_at > now() - interval '1 day'
    """
)


def watch_broken_contracts(connection: Connection, consumer: Consumer) -> None:
    """Open or close the alarm of a consumer of the event lane, by what the inbox says of its latest messages.

    Args:
        connection: a transaction on the operational database.
        consumer: its topics are looked at together.
    """
    rows = connection.execute(
        _LATEST, {"consumer": consumer.name, "latest": LATEST, "of_a_partition": LATEST_OF_A_PARTITION}
    ).all()
    reasons: dict[str, int] = {}
    framed = 0
    for row in rows:
        if row.outcome == "dead_letter":
            reasons[row.reason] = reasons.get(row.reason, 0) + 1
            framed += FRAMED in (row.detail or "")
    settled = len(rows)
    if consumer.shape is Shape.per_message:
        # Good messages wait for their runs; dead letters are settled with the claim.
        settled = max(settled, min(LATEST, sum(reasons.values()) + _waiting(connection, consumer)))
    watch_share(
        connection,
        consumer.name,
        f"the latest {settled} messages",
        settled,
        reasons,
        max_share=MAX_SHARE,
        remedy="Correct the producer, or the contract; then replay the dead letters",
        framed=framed,
    )


def _waiting(connection: Connection, consumer: Consumer) -> int:
    """Offsets of open claims that have no row in the inbox yet, about as many as are looked at."""
    query = text(
        """
        select coalesce(sum(greatest(r.end_offset - r.readable_from, 0)), 0) - (
            select coalesce(sum(h.end_offset - h.start_offset), 0)
            from handled_ranges h join claims c on c.id = h.claim_id
            where c.consumer = :consumer and c.closed_at is null
        )
        from claims c join claim_ranges r on r.claim_id = c.id where c.consumer = :consumer and c.closed_at is null
        """
    )
    return int(connection.scalar(query, {"consumer": consumer.name}) or 0)


def watch_share(
    connection: Connection,
    source: str,
    messages: str,
    total: int,
    reasons: Mapping[str, int],
    *,
    max_share: float,
    remedy: str,
    framed: int = 0,
) -> None:
    """Open the alarm when many of some messages broke their contract; close it when less than half as many did.

    Args:
        connection: a transaction on the operational database.
        source: the consumer whose messages they are; the alarm's source.
        messages: which ones, in words.
        total: how many there are.
        reasons: {reason: dead letters among them}.
        max_share: of `total`; more dead letters are an alarm.
        remedy: what a person can do, a sentence without its full stop.
        framed: how many of the dead letters look like messages of a schema registry.
    """
    bad = sum(reasons.values())
    if bad >= MIN_DEAD_LETTERS and bad > max_share * total:
        reason, number = max(reasons.items(), key=lambda item: item[1])
        hint = (
            f" {framed} begin like messages of a schema registry (a zero byte, then an id of four bytes): their "
            "producer uses a serializer that this topic does not take."
            if framed
            else ""
        )
        message = (
            f"{bad} of {messages} ({100 * bad // total} %) break their contract, {number} of them with {reason}.{hint} "
            f"{remedy} (docs/runbooks/dead-letters.md)"
        )
        open_alarm(connection, source, ALARM, message)
    elif total == 0 or bad <= max_share / 2 * total:
        close_alarm(connection, source, ALARM)
