"""The alarm about a producer that breaks its contract: most of the latest messages are dead letters.

Each of these messages is settled, so all runs succeed, and no other alarm shows that a topic holds no valid message.
"""

from collections.abc import Mapping

from sqlalchemy import Connection, text

from include.contracts.violations import FRAMED
from include.kafka.consumers import Consumer, Shape
from include.operations.alarms import close_alarm, open_alarm

ALARM = "many_dead_letters"
# The number of latest messages that are counted over all partitions, and the minimum for each partition.
LATEST, LATEST_OF_A_PARTITION = 200, 5
# Fewer dead letters than this are no pattern, unless they are all of the latest messages.
MIN_DEAD_LETTERS = 10
# So many dead letters after the last valid message are a pattern, and at least this share of the latest messages.
IN_A_ROW, IN_A_ROW_SHARE = 3, 0.1
# The alarm opens above this share and closes at half of it, so that a share around the limit is one episode.
MAX_SHARE = 0.5

# Selects by offset, back from the end of the claimed offsets: the primary key finds these rows, however large the inbox
# is.
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
    """Open or close the alarm of a consumer of the event lane by the inbox rows of its latest messages.

    Args:
        connection: A connection to the operational database, in a transaction.
        consumer: The consumer; its topics count together.
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
        # Valid messages wait for their runs and have no inbox row yet; dead letters are settled with the claim.
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
    """The approximate number of offsets of open claims that are not handled yet."""
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


def is_broken(total: int, bad: int, max_share: float, *, in_a_row: int = 0) -> bool:
    """Whether a producer seems to break its contract: most of many messages, or all of the latest ones.

    The second rule is for quiet topics, which have too few dead letters for the first one. On a busy topic it asks for
    more than IN_A_ROW, because a few bad messages are often neighbours there.

    Args:
        total: The number of latest messages.
        bad: The number of dead letters among them.
        max_share: The allowed share of dead letters, from 0 to 1.
        in_a_row: The number of dead letters since the last valid message, whatever their age.
    """
    is_much = bad >= MIN_DEAD_LETTERS and bad > max_share * total
    return is_much or in_a_row >= max(IN_A_ROW, IN_A_ROW_SHARE * total)


def is_healthy(total: int, bad: int, max_share: float) -> bool:
    """Whether messages that are not broken are so good that an open alarm closes."""
    return bad <= max_share / 2 * total


def text_of(messages: str, total: int, reasons: Mapping[str, int], remedy: str, *, framed: int = 0) -> str:
    """The alarm's text about messages that are broken.

    Args:
        messages: A description of the messages, such as "the latest 31 messages".
        total: Their number, above 0.
        reasons: {reason: number of dead letters}, not empty.
        remedy: The remedy for people, a sentence without its full stop.
        framed: The number of dead letters that look like messages of a schema registry.
    """
    bad = sum(reasons.values())
    reason, number = max(reasons.items(), key=lambda item: item[1])
    hint = (
        f" {framed} begin like messages of a schema registry (a zero byte, then an id of four bytes): their "
        "producer uses a serializer that this topic does not take."
        if framed
        else ""
    )
    return (
        f"{bad} of {messages} ({100 * bad // total} %) break their contract, {number} of them with {reason}.{hint} "
        f"{remedy} (docs/runbooks/dead-letters.md)"
    )


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
    in_a_row: int = 0,
) -> None:
    """Open the alarm when the messages of one topic are broken; close it when they are healthy.

    Args:
        connection: A connection to the operational database, in a transaction.
        source: The name of the consumer; also the alarm's source.
        messages: A description of the messages for the alarm's text.
        total: The number of messages.
        reasons: {reason: number of dead letters}.
        max_share: The allowed share of dead letters in `total`, from 0 to 1; the alarm closes at half of it.
        remedy: The remedy for people, a sentence without its full stop.
        framed: The number of dead letters that look like messages of a schema registry.
        in_a_row: The number of dead letters since the last valid message, whatever their age.
    """
    bad = sum(reasons.values())
    if is_broken(total, bad, max_share, in_a_row=in_a_row):
        open_alarm(connection, source, ALARM, text_of(messages, total, reasons, remedy, framed=framed))
    elif is_healthy(total, bad, max_share):
        close_alarm(connection, source, ALARM)
