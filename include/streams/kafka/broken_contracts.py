"""The alarm about a producer that breaks its contract: most of a topic's latest messages are dead letters.

Each of these messages is settled, so all runs succeed, and no other alarm shows that a topic holds no valid message.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Row, text

from include.streams.contracts.violations import FRAMED
from include.streams.kafka.consumers import Consumer, Shape
from include.streams.operations.alarm_kinds import AlarmKind
from include.streams.operations.alarms import close_others, open_alarm
from include.streams.operations.tables import Outcome

# How many of the latest messages of a topic are counted, over all partitions; and the minimum for each partition.
LATEST, LATEST_OF_A_PARTITION = 200, 5
# Fewer dead letters than this are no pattern, unless no valid message came after them.
MIN_DEAD_LETTERS = 10
# Dead letters after the last valid message are a pattern if they are at least this many, and at least this share of the
# latest messages.
IN_A_ROW, IN_A_ROW_SHARE = 3, 0.1
# The alarm opens above this share and closes at half of it, so that a share around the limit opens one alarm only.
MAX_SHARE = 0.5
REMEDY = "Correct the producer or the contract; then replay the dead letters"

# Each topic has its own window: among the messages of a busy topic, the dead letters of a quiet topic would be too
# small a share. Only topics that the consumer reads now: the last messages of a former topic never change.
# The limit is inside the join, so that the primary key finds these rows backwards from each partition's end, however
# large the inbox is. A condition on their age at this place would make PostgreSQL read all older rows of a quiet topic.
# Messages that are not wanted do not count: they would hide that all others are dead letters. If there are very many of
# them, few other messages are found.
_LATEST = text(
    """
    with partitions as (
        select topic, topic_id, partition,
            greatest(:latest / count(*) over (partition by topic), :of_a_partition) as latest
        from positions where consumer = :consumer and topic = any(:topics)
    )
    select p.topic, p.partition, i.*, i.recorded_at > now() - interval '1 day' as is_recent
    from partitions p cross join lateral (
        select "offset", outcome, reason, strpos(coalesce(detail, ''), :framed) > 0 as is_framed, run_id, recorded_at
        from (
            select * from inbox where consumer = :consumer and topic_id = p.topic_id and partition = p.partition
            order by "offset" desc limit 20 * p.latest
        ) as last
        where outcome <> 'not_wanted' order by "offset" desc limit p.latest
    ) i
    """
)
# The approximate number of offsets of open claims that are not settled yet.
_WAITING = text(
    """
    select r.topic, c.run_id, c.claimed_at, sum(r.end_offset - r.readable_from) - coalesce((
        select sum(h.end_offset - h.start_offset) from handled_ranges h where h.claim_id = c.id and h.topic = r.topic
    ), 0) as messages
    from claims c join claim_ranges r on r.claim_id = c.id
    where c.consumer = :consumer and c.closed_at is null and r.topic = any(:topics)
    group by c.id, r.topic
    """
)


def watch_broken_contracts(connection: Connection, consumer: Consumer) -> None:
    """Open or close the alarms of a consumer of the event lane by the inbox rows of each topic's latest messages.

    Each topic has its own alarm. The alarm of a topic that the consumer no longer reads is closed.

    Args:
        connection: A connection to the operational database, in a transaction.
        consumer: The consumer; each of its topics is checked separately.
    """
    topics = [topic.name for topic in consumer.topics]
    of_consumer = {"consumer": consumer.name, "topics": topics}
    window = {"latest": LATEST, "of_a_partition": LATEST_OF_A_PARTITION, "framed": FRAMED}
    rows_of = _by_topic(connection.execute(_LATEST, {**of_consumer, **window}).all())
    has_dead_letters = any(_dead_letters(rows) for rows in rows_of.values())
    open_claims = connection.execute(_WAITING, of_consumer).all() if has_dead_letters else []
    claims_of = _by_topic([claim for claim in open_claims if claim.messages > 0])
    still_open: list[str] = []
    for topic in topics:
        rows, topic_claims = rows_of.get(topic, []), claims_of.get(topic, [])
        recent = [row for row in rows if row.is_recent]
        bad, total = len(_dead_letters(recent)), len(recent)
        if consumer.shape is Shape.per_message:
            # Valid messages wait for their runs and have no inbox row yet; dead letters are settled with the claim.
            total = max(total, min(LATEST, bad + sum(int(claim.messages) for claim in topic_claims)))
        in_a_row = _after_last_valid(rows, topic_claims)
        text = ""
        if is_broken(total, bad, MAX_SHARE):
            text = _text(topic, f"the latest {total} messages", total, _dead_letters(recent))
        elif is_broken(total, bad, MAX_SHARE, in_a_row=len(in_a_row)):
            text = _text(topic, f"the last {len(in_a_row)} messages", len(in_a_row), in_a_row)
        if text:
            open_alarm(connection, consumer.name, AlarmKind.many_dead_letters, text, key=topic)
        if text or not is_healthy(total, bad, MAX_SHARE):
            still_open.append(topic)
    close_others(connection, consumer.name, AlarmKind.many_dead_letters, still_open)


def _by_topic(rows: Sequence[Row]) -> dict[str, list[Row]]:
    by_topic: dict[str, list[Row]] = {}
    for row in rows:
        by_topic.setdefault(row.topic, []).append(row)
    return by_topic


def _dead_letters(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.outcome == Outcome.dead_letter]


def _after_last_valid(rows: Sequence[Row], open_claims: Sequence[Row]) -> list[Row]:
    """The dead letters of a topic that certainly came after all of its valid messages.

    Within a partition, the offsets give the order. Between partitions, the times of the runs give it: a run records its
    dead letters after its valid messages, whatever their offsets. A message that is not settled may be valid.

    Args:
        rows: Inbox rows of the topic, the latest of each partition.
        open_claims: Open claims with messages of the topic that are not settled.
    """
    time_of = {claim.run_id: claim.claimed_at for claim in open_claims}
    for row in rows:
        time_of[row.run_id] = max(row.recorded_at, time_of.get(row.run_id, row.recorded_at))
    by_offset = sorted(rows, key=lambda row: row.offset)
    last_valid = {row.partition: row for row in by_offset if row.outcome != Outcome.dead_letter}
    last_valid_times = {partition: time_of[row.run_id] for partition, row in last_valid.items()}
    last_unsettled = max((time_of[claim.run_id] for claim in open_claims), default=None)

    def is_after(letter: Row) -> bool:
        recorded = time_of[letter.run_id]
        valid = last_valid.get(letter.partition)
        return (
            (valid is None or letter.offset > valid.offset)
            and (last_unsettled is None or recorded > last_unsettled)
            and all(recorded > other for partition, other in last_valid_times.items() if partition != letter.partition)
        )

    return [row for row in _dead_letters(rows) if is_after(row)]


def _text(topic: str, messages: str, total: int, letters: Sequence[Row]) -> str:
    framed = sum(row.is_framed for row in letters)
    reasons = Counter(row.reason for row in letters)
    return f"topic {topic}: {text_of(messages, total, reasons, REMEDY, framed=framed)}"


def is_broken(total: int, bad: int, max_share: float, *, in_a_row: int = 0) -> bool:
    """Whether a producer seems to break its contract: most of many messages, or all of the latest messages.

    The second rule is for quiet topics, which have too few dead letters for the first rule. On a busy topic it requires
    more than IN_A_ROW dead letters, because a few bad messages often follow each other there.

    Args:
        total: The number of latest messages.
        bad: The number of dead letters among them.
        max_share: The allowed share of dead letters, from 0 to 1.
        in_a_row: The number of dead letters since the last valid message, whatever their age.
    """
    is_large_share = bad >= MIN_DEAD_LETTERS and bad > max_share * total
    return is_large_share or in_a_row >= max(IN_A_ROW, IN_A_ROW_SHARE * total)


def is_healthy(total: int, bad: int, max_share: float) -> bool:
    """Whether so few of the messages are dead letters that an open alarm closes, unless `is_broken`.

    Args:
        total: The number of latest messages.
        bad: The number of dead letters among them.
        max_share: The share of dead letters above which the alarm opens, from 0 to 1.
    """
    return bad <= max_share / 2 * total


def text_of(messages: str, total: int, reasons: Mapping[str, int], remedy: str, *, framed: int = 0) -> str:
    """The alarm's text about many dead letters.

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
        "producer uses a serializer whose messages the topic's contract cannot read."
        if framed
        else ""
    )
    return (
        f"{bad} of {messages} ({100 * bad // total} %) are dead letters, {number} of them with {reason}.{hint} {remedy}"
    )


def watch_share(
    connection: Connection,
    source: str,
    topic: str,
    messages: str,
    total: int,
    reasons: Mapping[str, int],
    *,
    max_share: float,
    remedy: str,
    framed: int = 0,
    in_a_row: int = 0,
) -> None:
    """Open the alarm when too many messages of one topic are dead letters; close it when few are.

    Args:
        connection: A connection to the operational database, in a transaction.
        source: The name of the consumer; also the alarm's source.
        topic: The name of the only topic that it reads; also the alarm's key.
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
        text = text_of(messages, total, reasons, remedy, framed=framed)
        open_alarm(connection, source, AlarmKind.many_dead_letters, text, key=topic)
    elif is_healthy(total, bad, max_share):
        close_others(connection, source, AlarmKind.many_dead_letters)
