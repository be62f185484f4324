"""The plan of a replay: its parameters, and the offsets to read to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from pkgutil import resolve_name
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from include.streams.contracts import Reason, Registry, Topic
from include.streams.kafka.connection import CONN_ID, DEAD_LETTERS_CONN_ID, client_config
from include.streams.kafka.replay_letters import Envelope

log = logging.getLogger(__name__)

# Required settings of that connection: (setting, accepted values, the consequence of any other value).
_NEEDED_SETTINGS = (
    ("enable.auto.commit", ("false",), "the next run would start where this one ended, and pass over what still fails"),
    ("auto.offset.reset", ("earliest", "smallest", "beginning"), "only dead letters that come later would be read"),
    ("enable.partition.eof", ("true",), "the end of a partition would look like a broker that does not answer"),
)


class Selection(BaseModel):
    """The parameters of a run: which dead letters to process, and how.

    Both windows, of time and of offsets, exclude their end. A dead letter that lacks the time or the coordinates that a
    window needs is outside of the window.

    Attributes:
        topic: The topic whose dead letters are replayed.
        reason: Only dead letters with this reason; None for all.
        since: Only messages that became dead letters at this time or later.
        until: Only messages that became dead letters before this time.
        partition: Only messages of this partition of their own topic, as logs, the inbox and the envelope name it.
        from_offset: Only messages from this offset of that partition on.
        until_offset: Only messages below this offset of that partition.
        limit: The most messages to send. Messages that still fail do not count: otherwise a run could reach its limit
            with these alone.
        again: Also replay messages that became dead letters again after a replay.
        dry_run: Report the outcomes, but send and record nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    topic: str
    reason: Reason | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    partition: NonNegativeInt | None = None
    from_offset: NonNegativeInt | None = None
    until_offset: NonNegativeInt | None = None
    limit: PositiveInt = 100
    again: bool = False
    dry_run: bool = True

    @model_validator(mode="after")
    def _windows_are_not_empty(self) -> Selection:
        if self.since and self.until and self.since >= self.until:
            raise ValueError("the window of time is empty: since must lie before until")
        if self.until_offset is not None and (self.from_offset or 0) >= self.until_offset:
            raise ValueError("the window of offsets is empty: from_offset must be below until_offset")
        if self.partition is None and (self.from_offset, self.until_offset) != (None, None):
            raise ValueError("a window of offsets needs a partition")
        return self

    def takes(self, at: datetime | None, envelope: Envelope | None) -> bool:
        """Whether a dead letter is in the windows and has the selected reason.

        Args:
            at: The time of the dead letter record; None when it has none.
            envelope: Its envelope; None when it has none that can be read.
        """
        if (self.since or self.until) and at is None:
            return False
        if at and ((self.since and at < self.since) or (self.until and at >= self.until)):
            return False
        if envelope is None:
            return self.reason is None and self.partition is None
        if self.reason not in (None, envelope.reason):
            return False
        if self.partition not in (None, envelope.partition):
            return False
        below_end = self.until_offset is None or envelope.offset < self.until_offset
        return envelope.offset >= (self.from_offset if self.from_offset is not None else -1) and below_end


class Plan(BaseModel):
    """The reading range and the parameters of one run; the same for every try of its task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    selection: Selection
    run_id: str
    # "package.module:NAME" of the registry of topics and of their repairs; None without repairs.
    registry: str
    repairs: str | None
    topic_id: str = Field(description="the dead-letter topic's")
    ends: dict[int, int] = Field(description="of each partition that holds anything: the end to read to")
    partitions: int = Field(description="of the topic that the messages go back to")
    conn_id: str


class ReplayImpossible(Exception):
    """A connection or a topic does not meet the needs of a replay; the text names the change to make."""


def plan_replay(
    params: Mapping[str, Any],
    run_id: str,
    *,
    registry: str,
    repairs: str | None,
    dead_letters_conn_id: str = DEAD_LETTERS_CONN_ID,
    conn_id: str = CONN_ID,
) -> list[dict[str, Any]]:
    """Check the parameters of a replay and record the offsets to read to.

    Args:
        params: The fields of a `Selection`.
        run_id: The Dag run's id.
        registry: "package.module:NAME" of the registry of topics.
        repairs: "package.module:NAME" of their repairs; None if there are none.
        dead_letters_conn_id: The Airflow connection that reads the dead-letter topic.
        conn_id: The Airflow connection that sends the messages back.

    Returns:
        Arguments for `ConsumeFromTopicOperator.expand_kwargs`: one mapping, or none when there are no dead letters.

    Raises:
        ValidationError: Pydantic rejects the parameters.
        ReplayImpossible: A connection or a topic does not meet the needs of a replay.
        KafkaException: The broker did not answer.
    """
    selection = Selection.model_validate(params)
    topics: Registry = resolve_name(registry)
    topic = topics[selection.topic]
    if repairs:
        resolve_name(repairs)
    topic_id, found, partitions = look(topic, dead_letters_conn_id)
    ends = {partition: end for partition, (low, end) in found.items() if low < end}
    log.info("dead letters of %s: %s", topic.name, {p: f"[{low}, {end})" for p, (low, end) in found.items()})
    if not ends:
        return []
    plan = Plan(
        selection=selection,
        run_id=run_id,
        registry=registry,
        repairs=repairs,
        topic_id=topic_id,
        ends=ends,
        partitions=partitions,
        conn_id=conn_id,
    )
    # One for every record, and one per partition for the client's report that the partition was read to its end.
    # Without this number, the operator reads until no record has arrived for a minute. If dead letters keep arriving,
    # it would never end.
    messages = sum(end - low for low, end in found.values()) + len(found)
    return [
        {
            "topics": [topic.dead_letter_name],
            "max_messages": messages,
            "apply_function_kwargs": {"plan": plan.model_dump(mode="json"), "conn_id": dead_letters_conn_id},
        }
    ]


def look(topic: Topic, conn_id: str) -> tuple[str, dict[int, tuple[int, int]], int]:
    """Look up the offsets of the dead-letter topic.

    Args:
        topic: The topic whose dead letters are replayed.
        conn_id: The Airflow connection that reads the dead-letter topic.

    Returns:
        The id of the dead-letter topic; its offsets as {partition: (low, end)}; the number of partitions of `topic`.

    Raises:
        ReplayImpossible: The connection, its group or a topic does not meet the needs of a replay.
    """
    from include.streams.kafka.offsets import GroupOffsets

    group = _check_settings(conn_id)
    with GroupOffsets(group, conn_id) as offsets:
        found = offsets.look_now([topic.name, topic.dead_letter_name])
        incomplete = offsets.incomplete
    letters = {p.number: o for p, o in found.items() if p.topic == topic.dead_letter_name}
    partitions = [p.number for p in found if p.topic == topic.name]
    if incomplete or not letters or not partitions:
        raise ReplayImpossible(
            f"topic {topic.name} or {topic.dead_letter_name} does not exist, or has no leader: run prepare_services, "
            "or wait for the broker"
        )
    if committed := {number: o.committed for number, o in letters.items() if o.committed is not None}:
        raise ReplayImpossible(
            f"connection {conn_id}: group {group} has committed offsets {committed} on {topic.dead_letter_name}, and "
            "would not see what lies before; give the connection a group.id of its own, or delete that group"
        )
    (topic_id,) = {o.topic_id for o in letters.values()}
    return topic_id, {number: (o.low, o.end) for number, o in letters.items()}, max(partitions) + 1


def _check_settings(conn_id: str) -> str:
    """Check the connection's settings and return its consumer group; raises ReplayImpossible."""
    config = client_config(conn_id)
    for setting, accepted, otherwise in _NEEDED_SETTINGS:
        found = config.get(setting)
        if str(found).lower() not in accepted:
            shown = "is missing" if found is None else f"is {found!r}"
            raise ReplayImpossible(f"connection {conn_id}: {setting} {shown}; set it to {accepted[0]}, or {otherwise}")
    if not config.get("group.id"):
        raise ReplayImpossible(f"connection {conn_id}: group.id is missing; give it one that nobody else uses")
    return str(config["group.id"])
