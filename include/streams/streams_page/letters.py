"""Dead letters for the Streams page: the list, and one letter with its content and what a repair would make of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, text

from include.streams.contracts import ContractViolation, NotWanted, Topic
from include.streams.contracts.personal import MASK, has_personal_fields, masked, public_names
from include.streams.contracts.repairs import to_document
from include.streams.formats import RegistryUnavailable, SchemaRefused
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.dead_letter_records import DeadLetterRecord
from include.streams.kafka.dead_letters import PREFIX
from include.streams.kafka.messages import Message
from include.streams.packages import Project

PAGE_SIZE = 50
# The longest text of a payload or header that is shown.
MAX_CHARACTERS, MAX_HEADER_CHARACTERS = 64_000, 2_000
GROUP = "streams_page"

# The state of a letter: the outcome of its latest replay, of the same message.
_FROM = """
    from dead_letters d left join replays r
        on r.topic_id = d.topic_id and r."partition" = d."partition" and r."offset" = d."offset"
        and r.source_timestamp is not distinct from d.source_timestamp
"""
_OPEN = "coalesce(r.outcome, '') not in ('replayed', 'duplicate', 'settled')"


class LetterQuery:
    """What to list. Texts of a request become parameters, never SQL.

    Args:
        parameters: topic, reason, consumer, writer, hours (at most so old), state ("open" by default, or "all"),
            search, and before (the cursor of the last row of the page before).
    """

    def __init__(self, parameters: Mapping[str, str]) -> None:
        self.conditions: list[str] = []
        self.values: dict[str, Any] = {}
        for name in ("topic", "reason", "consumer", "writer"):
            if value := parameters.get(name):
                self.conditions.append(f"d.{name} = :{name}")
                self.values[name] = value
        if hours := parameters.get("hours"):
            self.conditions.append("d.written_at >= :since")
            self.values["since"] = datetime.now(UTC) - timedelta(hours=min(int(hours), 24 * 400))
        if parameters.get("state") != "all":
            self.conditions.append(_OPEN)
        if search := parameters.get("search", "").strip()[:200]:
            self._add_search(search)
        self.before: dict[str, Any] | None = None
        if before := parameters.get("before"):
            at, topic_id, partition, offset = before.split("|")
            self.before = {"at": datetime.fromisoformat(at), "id": topic_id, "p": int(partition), "o": int(offset)}

    def _add_search(self, search: str) -> None:
        columns = ("topic", "reason", "consumer", "detail", "run_id")
        found = [f"strpos(lower(d.{column}), :search) > 0" for column in columns]
        # A message is found by its key: only the digest of the key is stored.
        self.conditions.append(
            f"({' or '.join(found)} or d.key_digest = :key_digest"
            " or d.topic || '-' || d.source_partition || '@' || d.source_offset = :coordinates)"
        )
        self.values |= {"search": search.lower(), "coordinates": search, "key_digest": sha256(search.encode()).digest()}

    @property
    def where(self) -> str:
        return "where " + " and ".join(self.conditions) if self.conditions else ""


def read_letters(connection: Connection, query: LetterQuery) -> dict[str, Any]:
    """A page of the list, newest first, and the numbers of letters by topic, reason and consumer."""
    page, values = query.where, dict(query.values)
    if query.before:
        earlier = '(d.written_at, d.topic_id, d."partition", d."offset") < (:at, :id, :p, :o)'
        page, values = f"{page} {'and' if page else 'where'} {earlier}", {**values, **query.before}
    statement = f"""
        select d.*, r.outcome, r.detail as replay_detail, r.recorded_at as replayed_at {_FROM} {page}
        order by d.written_at desc, d.topic_id desc, d."partition" desc, d."offset" desc limit {PAGE_SIZE + 1}
    """
    rows = connection.execute(text(statement), values).all()
    counts = f"""
        select topic, reason, consumer, writer, count(*) as number from (select d.* {_FROM} {query.where}) as d
        group by grouping sets ((topic), (reason), (consumer), (writer), ())
    """
    facets: dict[str, dict[str, int]] = {"topic": {}, "reason": {}, "consumer": {}, "writer": {}}
    total = 0
    for row in connection.execute(text(counts), query.values):
        named = {name: value for name in facets if (value := getattr(row, name)) is not None}
        if named:
            ((name, value),) = named.items()
            facets[name][value] = row.number
        else:
            # The whole set, or the letters without a consumer, which are fewer.
            total = max(total, row.number)
    return {
        "letters": [_row(row) for row in rows[:PAGE_SIZE]],
        "next": _cursor(rows[PAGE_SIZE - 1]) if len(rows) > PAGE_SIZE else None,
        "total": total,
        "facets": {
            name: dict(sorted(values.items(), key=lambda item: -item[1])[:50]) for name, values in facets.items()
        },
    }


def _cursor(row: Any) -> str:
    return f"{row.written_at.isoformat()}|{row.topic_id}|{row.partition}|{row.offset}"


def _row(row: Any) -> dict[str, Any]:
    return {
        "id": f"{row.topic}/{row.partition}/{row.offset}",
        "topic": row.topic,
        "partition": row.partition,
        "offset": row.offset,
        "written_at": row.written_at.isoformat(),
        "writer": row.writer,
        "reason": row.reason,
        "detail": row.detail,
        "consumer": row.consumer,
        "source_partition": row.source_partition,
        "source_offset": row.source_offset,
        "run_id": row.run_id,
        "size_bytes": row.size_bytes,
        "outcome": row.outcome,
        "outcome_detail": row.replay_detail,
        "outcome_at": row.replayed_at and row.replayed_at.isoformat(),
    }


def read_row(connection: Connection, topic: str, partition: int, offset: int) -> dict[str, Any]:
    """The row of one letter, with the identity of its log; empty if there is none."""
    statement = f"""
        select d.*, r.outcome, r.detail as replay_detail, r.recorded_at as replayed_at {_FROM}
        where d.topic = :topic and d."partition" = :partition and d."offset" = :offset
    """
    row = connection.execute(text(statement), {"topic": topic, "partition": partition, "offset": offset}).first()
    return {} if row is None else {**_row(row), "topic_id": row.topic_id}


def fetch_record(topic: Topic, topic_id: str, partition: int, offset: int) -> Message | None:
    """The record from the dead-letter topic; None if retention has removed it."""
    from include.streams.kafka.originals import Originals

    with Originals(topic.dead_letter_name, topic_id, group=GROUP, conn_id=CONN_ID) as originals:
        return originals.fetch([(partition, offset)]).get((partition, offset))


def content(project: Project, topic: Topic, record: Message, *, sees_personal: bool) -> dict[str, Any]:
    """Key, headers, payload, and what a repair would make of it; as text, masked for those who may not see it.

    Args:
        project: The project, for the topic's repairs.
        topic: The topic of the message.
        record: The record of the dead-letter topic.
        sees_personal: Whether the user may see personal data.
    """
    letter = DeadLetterRecord.of(record, topic.name)
    hides = has_personal_fields(topic) and not sees_personal
    public = public_names(topic) if hides else set()
    own = {name for name, _ in record.headers if name.startswith(PREFIX)}
    headers = [
        {
            "name": name,
            "value": MASK if hides and name not in own and name not in public else _text(value, MAX_HEADER_CHARACTERS),
        }
        for name, value in record.headers
    ]
    return {
        "key": MASK if hides and topic.key not in public else _text(record.key, MAX_HEADER_CHARACTERS),
        "headers": headers,
        "payload": _payload(topic, record.value, hides=hides),
        "is_masked": hides,
        "is_stub": letter.origin is not None and letter.origin.stub_of is not None,
        "repair": _repair(project, topic, letter, hides=hides),
    }


def _repair(project: Project, topic: Topic, letter: DeadLetterRecord, *, hides: bool) -> dict[str, Any]:
    if letter.origin is not None and letter.origin.stub_of is not None:
        return {"passes": None, "text": "This is the beginning of the message. A replay reads the whole one."}
    if letter.origin is None:
        return {"passes": None, "text": "Another program wrote this dead letter: it is not replayed from here."}
    try:
        repaired = project.repairs_of(topic.name).apply(topic, letter.record.value, letter.headers)
    except ContractViolation as violation:
        return {"passes": False, "text": f"It still breaks its contract: {violation.reason}: {violation.detail}"}
    except NotWanted:
        return {"passes": False, "text": "No contract of the topic takes messages of its type."}
    except (RegistryUnavailable, SchemaRefused) as error:
        return {"passes": None, "text": f"The schema registry gives no answer about it: {error}"}
    value, repairs = repaired.value, repaired.repairs
    changed = value != letter.record.value
    return {
        "passes": True,
        "text": f"It passes its contract after the repair {', '.join(repairs)}."
        if repairs
        else "It passes its contract.",
        "payload": _payload(topic, value, hides=hides) if changed else None,
    }


def _payload(topic: Topic, value: bytes | None, *, hides: bool) -> str | None:
    """The payload as text; None for a record without a value."""
    if value is None:
        return None
    document = to_document(value)
    if hides:
        if document is None:
            return f"{MASK} ({len(value)} bytes that are no JSON object, so personal data in them cannot be masked)"
        document = masked(topic, document)
    if document is None:
        return _text(value, MAX_CHARACTERS)
    return json.dumps(document, indent=2, ensure_ascii=False)[:MAX_CHARACTERS]


def _text(value: bytes | None, most: int) -> str | None:
    return None if value is None else value[: 4 * most].decode("utf-8", "replace")[:most]
