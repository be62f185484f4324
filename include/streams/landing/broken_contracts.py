"""The alarm about a producer that breaks its contract, in the standard lane: its runs succeed, and only this shows it.

A large claim is judged for itself. A small one says little, and a quiet topic has no other: it is judged together with
the claims before it, by the rule of the event lane (`include/streams/kafka/broken_contracts.py`).
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

# In a handful of messages, a few bad ones would be a large share.
ENOUGH_RECORDS = 100
MUCH_SHARE = 0.05

# Back from the next offset of each partition, by the index of ranges: each range holds an offset at least, so there are
# no more of them than offsets, however many claims are on record. A join with the claims could read all of them.
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
        f"The good ones went on. Look at some of {consumer.topic.dead_letter_name}, and have the producer corrected"
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
            {each.reason: each.number for each in counted},
            max_share=MUCH_SHARE,
            remedy=remedy,
            framed=sum(each.framed for each in counted),
        )
        return
    latest = _latest(connection, consumer, of_table)
    if not latest or latest[0][0] != claim_id:
        # A run that was cleared says nothing about the producer of now.
        return
    bad = dead_letters.reasons(connection, consumer.name, ((of, part) for of, parts in latest for part in parts))
    reasons: dict[str, int] = {}
    total = framed = in_a_row = 0
    are_all_bad = True
    for of, parts in latest:
        counted: list[Counted] = bad.get(of, [])
        number, size = sum(each.number for each in counted), sum(map(len, parts))
        are_all_bad &= number == size
        in_a_row += number if are_all_bad else 0
        total += size
        framed += sum(each.framed for each in counted)
        for each in counted:
            reasons[each.reason] = reasons.get(each.reason, 0) + each.number
    wrong = sum(reasons.values())
    if is_broken(total, wrong, MAX_SHARE, in_a_row=in_a_row):
        message = text_of(f"the latest {total} messages", total, reasons, remedy, framed=framed)
        open_alarm(connection, consumer.name, AlarmKind.many_dead_letters, message, key=consumer.topic.name)
    # A large claim may have opened it, which allows a smaller share.
    elif total and is_healthy(total, wrong, MAX_SHARE if wrong < MIN_DEAD_LETTERS else MUCH_SHARE):
        close_others(connection, consumer.name, AlarmKind.many_dead_letters)


def _latest(connection: Connection, consumer: LandingConsumer, of_table: str) -> list[tuple[int, list[OffsetRange]]]:
    """(claim, its parts) of the consumer's latest messages, the newest claim first."""
    asked = {"consumer": consumer.name, "topic": consumer.topic.name, "latest": LATEST}
    rows = connection.execute(_LATEST, asked).all()
    starts: dict[int, int] = {}
    for row in rows:
        starts[row.partition] = min(row.start_offset, starts.get(row.partition, row.start_offset))
    # Each transaction of a producer leaves an offset without a record.
    empty = gaps.settled(connection, of_table, starts)
    claims: dict[int, list[OffsetRange]] = {}
    for row in rows:
        parts = intervals.subtract([(row.start_offset, row.end_offset)], empty.get(row.partition, []))
        mine = claims.setdefault(row.claim_id, [])
        mine += [OffsetRange(row.topic, row.topic_id, row.partition, start, end) for start, end in parts]
    found: list[tuple[int, list[OffsetRange]]] = []
    room = LATEST
    for claim_id, parts in claims.items():
        if room <= 0:
            break
        found.append((claim_id, _last(parts, room)))
        room -= sum(map(len, found[-1][1]))
    return found


def _last(parts: list[OffsetRange], room: int) -> list[OffsetRange]:
    """At most about so many offsets of the parts, the last ones of each."""
    total = sum(map(len, parts))
    if total <= room:
        return parts
    return [replace(part, start=part.end - max(1, len(part) * room // total)) for part in parts]
