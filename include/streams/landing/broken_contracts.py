"""The alarm about a producer that breaks its contract, in the standard lane. Runs succeed, so no other alarm shows it.

A large claim is judged alone. A small claim says little, and a quiet topic has only small claims. So a small claim is
judged together with the claims before it, by the rule of the event lane (`include/streams/kafka/broken_contracts.py`).
"""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection, text

from include.streams.kafka.broken_contracts import (
    LATEST,
    MAX_SHARE,
    MIN_DEAD_LETTERS,
    is_broken,
    is_healthy,
    text_of,
    watch_share,
)
from include.streams.kafka.offsets import OffsetRange
from include.streams.landing import dead_letters, gaps, intervals
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.dead_letters import Counted
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_others, open_alarm

# With fewer messages, a few bad ones would already be a large share.
ENOUGH_RECORDS = 100
MUCH_SHARE = 0.05

# Reads the ranges before the next offset of each partition, newest first, through the index of ranges. Each range holds
# at least one offset, so at most `latest` ranges are read, however many claims are recorded. A join with the claims
# could read all of them.
_LATEST = text(
    """
    select found.* from positions p cross join lateral (
        select r.claim_id, r.topic, r.topic_id, r.partition, r.end_offset,
            greatest(r.readable_from, p.next_offset - :latest) as start_offset
        from claim_ranges r
        where r.topic = p.topic and r.partition = p.partition and r.topic_id = p.topic_id
            and r.end_offset > p.next_offset - :latest and r.end_offset > r.readable_from
            and (select c.consumer from claims c where c.id = r.claim_id) = p.consumer
        order by r.end_offset desc limit :latest
    ) as found
    where p.consumer = :consumer and p.topic = :topic
    order by found.claim_id desc, found.partition
    """
)


def watch_broken_contracts(
    connection: Connection,
    consumer: LandingConsumer,
    of_table: str,
    claim_id: int,
    ranges: Sequence[OffsetRange],
    landed: int,
) -> None:
    """Open or close the alarm at the end of a run.

    Args:
        connection: A connection to the operational database, in a transaction.
        consumer: The landing consumer.
        of_table: The landing table's topic id, under which offsets without a record are known.
        claim_id: The run's claim.
        ranges: Its ranges.
        landed: The number of messages in them.
    """
    remedy = (
        f"The valid messages were processed. Look at some messages of {consumer.topic.dead_letter_name}, and have the "
        "producer corrected"
    )
    if landed >= ENOUGH_RECORDS:
        counted = dead_letters.reasons(connection, consumer.name, [(claim_id, part) for part in ranges]).get(
            claim_id, []
        )
        watch_share(
            connection,
            consumer.name,
            consumer.topic.name,
            f"the {landed} messages of claim {claim_id}",
            landed,
            {count.reason: count.number for count in counted},
            max_share=MUCH_SHARE,
            remedy=remedy,
            framed=sum(count.framed for count in counted),
        )
        return
    latest = _latest(connection, consumer, of_table)
    if not latest or latest[0][0] != claim_id:
        # A cleared run says nothing about what the producer sends now.
        return
    bad = dead_letters.reasons(connection, consumer.name, ((of, part) for of, parts in latest for part in parts))
    reasons: dict[str, int] = {}
    total = framed = in_a_row = 0
    are_all_bad = True
    for of, parts in latest:
        counted: list[Counted] = bad.get(of, [])
        number, size = sum(count.number for count in counted), sum(map(len, parts))
        are_all_bad &= number == size
        in_a_row += number if are_all_bad else 0
        total += size
        framed += sum(count.framed for count in counted)
        for count in counted:
            reasons[count.reason] = reasons.get(count.reason, 0) + count.number
    wrong = sum(reasons.values())
    if is_broken(total, wrong, MAX_SHARE, in_a_row=in_a_row):
        message = text_of(f"the latest {total} messages", total, reasons, remedy, framed=framed)
        open_alarm(connection, consumer.name, AlarmKind.many_dead_letters, message, key=consumer.topic.name)
    # A large claim may have opened the alarm; for it, a smaller share is allowed.
    elif total and is_healthy(total, wrong, MAX_SHARE if wrong < MIN_DEAD_LETTERS else MUCH_SHARE):
        close_others(connection, consumer.name, AlarmKind.many_dead_letters)


def _latest(connection: Connection, consumer: LandingConsumer, of_table: str) -> list[tuple[int, list[OffsetRange]]]:
    """The consumer's latest messages: (claim, its ranges that hold them), the newest claim first."""
    parameters = {"consumer": consumer.name, "topic": consumer.topic.name, "latest": LATEST}
    rows = connection.execute(_LATEST, parameters).all()
    starts: dict[int, int] = {}
    for row in rows:
        starts[row.partition] = min(row.start_offset, starts.get(row.partition, row.start_offset))
    # Offsets without a record do not count: each transaction of a producer leaves one.
    empty = gaps.settled(connection, of_table, starts)
    claims: dict[int, list[OffsetRange]] = {}
    for row in rows:
        parts = intervals.subtract([(row.start_offset, row.end_offset)], empty.get(row.partition, []))
        ranges = claims.setdefault(row.claim_id, [])
        ranges += [OffsetRange(row.topic, row.topic_id, row.partition, start, end) for start, end in parts]
    latest: list[tuple[int, list[OffsetRange]]] = []
    room = LATEST
    for claim_id, parts in claims.items():
        if room <= 0:
            break
        latest.append((claim_id, _last(parts, room)))
        room -= sum(map(len, latest[-1][1]))
    return latest


def _last(parts: list[OffsetRange], room: int) -> list[OffsetRange]:
    """The last offsets of each part, at most about `room` in total."""
    total = sum(map(len, parts))
    if total <= room:
        return parts
    return [replace(part, start=part.end - max(1, len(part) * room // total)) for part in parts]
