"""What a replay is asked to do, and up to where it reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from pkgutil import resolve_name
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from include.contracts import Reason, Registry, Topic
from include.kafka.connection import CONN_ID, client_config
from include.kafka.replay_letters import Envelope

log = logging.getLogger(__name__)

DEAD_LETTERS_CONN_ID = "kafka_dead_letters"
# Settings of that connection: (setting, accepted values, what happens otherwise).
_NEEDED_SETTINGS = (
    ("enable.auto.commit", ("false",), "the next run would start where this one ended, and pass over what still fails"),
    ("auto.offset.reset", ("earliest", "smallest", "beginning"), "only dead letters that come later would be read"),
    ("enable.partition.eof", ("true",), "the end of a partition would look like a broker that does not answer"),
)


class Selection(BaseModel):
    """Which dead letters, and what to do with them: the parameters of a run.

    `since` and `until` are about the time at which a message became a dead letter. `partition`, `from_offset` and
    `until_offset` are about where the message was on its own topic, which is what logs, the inbox and the envelope
    name. Both windows exclude their end. A dead letter without what a window asks for is not in it.
    `limit` is how many messages may be sent; those that still fail do not count, or they would be all that a run sees.
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
        """Whether a dead letter of that time is in the windows, and has the reason asked for."""
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
    """What one run reads and does; the same for every try of its task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    selection: Selection
    run_id: str
    # "package.module:NAME" of the topics and of their repairs.
    registry: str
    repairs: str
    topic_id: str = Field(description="the dead-letter topic's")
    ends: dict[int, int] = Field(description="of each partition that holds anything: the end to read to")
    partitions: int = Field(description="of the topic that the messages go back to")
    conn_id: str


class ReplayImpossible(Exception):
    """A connection or a topic is not what a replay needs; the text says what to change."""


def plan_replay(
    params: Mapping[str, Any],
    run_id: str,
    *,
    registry: str,
    repairs: str,
    dead_letters_conn_id: str = DEAD_LETTERS_CONN_ID,
    conn_id: str = CONN_ID,
) -> list[dict[str, Any]]:
    """Arguments for `ConsumeFromTopicOperator.expand_kwargs`; none when there are no dead letters.

    `registry` and `repairs` are "package.module:NAME". Messages go back through the connection `conn_id`.

    Raises pydantic's ValidationError for parameters that make no sense, ReplayImpossible, or KafkaException.
    """
    selection = Selection.model_validate(params)
    topics: Registry = resolve_name(registry)
    topic = topics[selection.topic]
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
    # Every record, and for every partition the client's report that it was read to its end. Without this number the
    # operator reads until nothing comes for a minute: for ever, when dead letters keep coming.
    messages = sum(end - low for low, end in found.values()) + len(found)
    return [
        {
            "topics": [topic.dead_letter_name],
            "max_messages": messages,
            "apply_function_kwargs": {"plan": plan.model_dump(mode="json"), "conn_id": dead_letters_conn_id},
        }
    ]


def look(topic: Topic, conn_id: str) -> tuple[str, dict[int, tuple[int, int]], int]:
    """(id, {partition: (low, end)}) of the dead-letter topic, and the number of the topic's own partitions.

    Raises ReplayImpossible when connection, group or topic are not what a replay needs.
    """
    from include.kafka.offsets import GroupOffsets

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
    """The connection's consumer group, when its settings are those that a replay needs."""
    config = client_config(conn_id)
    for setting, accepted, otherwise in _NEEDED_SETTINGS:
        found = config.get(setting)
        if str(found).lower() not in accepted:
            shown = "is missing" if found is None else f"is {found!r}"
            raise ReplayImpossible(f"connection {conn_id}: {setting} {shown}; set it to {accepted[0]}, or {otherwise}")
    if not config.get("group.id"):
        raise ReplayImpossible(f"connection {conn_id}: group.id is missing; give it one that nobody else uses")
    return str(config["group.id"])
