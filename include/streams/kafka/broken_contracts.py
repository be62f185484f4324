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

# The number of latest messages of a topic that are counted over its partitions, and the minimum for each partition.
LATEST, LATEST_OF_A_PARTITION = 200, 5
# Fewer dead letters than this are no pattern, unless they are all of the latest messages.
MIN_DEAD_LETTERS = 10
# So many dead letters after the last valid message are a pattern, and at least this share of the latest messages.
IN_A_ROW, IN_A_ROW_SHARE = 3, 0.1
# The alarm opens above this share and closes at half of it, so that a share around the limit is one episode.
MAX_SHARE = 0.5
REMEDY = "Correct the producer, or the contract; then replay the dead letters"

# Each topic has its own window: among the messages of a busy topic, those of another one would be no share. Only topics
# that the consumer reads: the last messages of a topic that it has left stay as they are.
# The limit inside of the join: the primary key finds these rows, back from each partition's end, however large the
# inbox is. A condition on their age there would read on through all older rows of a quiet topic. Messages that are not
# wanted do not count: they would hide that all others are dead letters. Behind very many of them, few others are found.
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

    Each topic has an alarm of its own. The alarm of a topic that the consumer does not read any more is closed.

    Args:
        connection: A connection to the operational database, in a transaction.
        consumer: The consumer; each of its topics is judged by itself.
    """
    topics = [topic.name for topic in consumer.topics]
    mine = {"consumer": consumer.name, "topics": topics}
    window = {"latest": LATEST, "of_a_partition": LATEST_OF_A_PARTITION, "framed": FRAMED}
    rows = _by_topic(connection.execute(_LATEST, {**mine, **window}).all())
    has_letters = any(_letters(each) for each in rows.values())
    open_claims = connection.execute(_WAITING, mine).all() if has_letters else []
    waiting = _by_topic([claim for claim in open_claims if claim.messages > 0])
    kept: list[str] = []
    for topic in topics:
        found, claimed = rows.get(topic, []), waiting.get(topic, [])
        recent = [row for row in found if row.is_recent]
        bad, total = len(_letters(recent)), len(recent)
        if consumer.shape is Shape.per_message:
            # Valid messages wait for their runs and have no inbox row yet; dead letters are settled with the claim.
            total = max(total, min(LATEST, bad + sum(int(row.messages) for row in claimed)))
        last = _since_valid(found, claimed)
        broken = ""
        if is_broken(total, bad, MAX_SHARE):
            broken = _text(topic, f"the latest {total} messages", total, _letters(recent))
        elif is_broken(total, bad, MAX_SHARE, in_a_row=len(last)):
            broken = _text(topic, f"the last {len(last)} messages", len(last), last)
        if broken:
            open_alarm(connection, consumer.name, AlarmKind.many_dead_letters, broken, key=topic)
        if broken or not is_healthy(total, bad, MAX_SHARE):
            kept.append(topic)
    close_others(connection, consumer.name, AlarmKind.many_dead_letters, kept)


def _by_topic(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.topic, []).append(row)
    return found


def _letters(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.outcome == Outcome.dead_letter]


def _since_valid(rows: Sequence[Row], claimed: Sequence[Row]) -> list[Row]:
    """The dead letters of a topic that surely came after all of its valid messages.

    Within a partition, the offsets tell the order. Between partitions, the runs tell it: dead letters are recorded
    after the valid messages of their run, wherever they were among them. A message that is not settled may be valid.

    Args:
        rows: Inbox rows of the topic, the latest of each partition.
        claimed: Open claims with messages of the topic that are not settled.
    """
    at = {row.run_id: row.claimed_at for row in claimed}
    for row in rows:
        at[row.run_id] = max(row.recorded_at, at.get(row.run_id, row.recorded_at))
    in_order = sorted(rows, key=lambda row: row.offset)
    last_valid = {row.partition: row for row in in_order if row.outcome != Outcome.dead_letter}
    runs = {partition: at[row.run_id] for partition, row in last_valid.items()}
    unsettled = max((at[row.run_id] for row in claimed), default=None)

    def is_after(letter: Row) -> bool:
        mine = at[letter.run_id]
        own = last_valid.get(letter.partition)
        return (
            (own is None or letter.offset > own.offset)
            and (unsettled is None or mine > unsettled)
            and all(mine > run for partition, run in runs.items() if partition != letter.partition)
        )

    return [row for row in _letters(rows) if is_after(row)]


def _text(topic: str, messages: str, total: int, letters: Sequence[Row]) -> str:
    framed = sum(row.is_framed for row in letters)
    reasons = Counter(row.reason for row in letters)
    return f"topic {topic}: {text_of(messages, total, reasons, REMEDY, framed=framed)}"


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
        f"{remedy}"
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
    """Open the alarm when the messages of one topic are broken; close it when they are healthy.

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
