"""Register the schemas of topics, or check that they are registered, before anything is produced."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from include.streams.contracts.topics import Topic
from include.streams.formats import NotDerivable, SchemaRefused
from include.streams.formats.codec import Codec

log = logging.getLogger(__name__)


def register_schemas(topics: Iterable[Topic]) -> list[str]:
    """Register the topics' own schemas, if their formats say so; otherwise check that they are registered.

    It can be repeated without harm. All topics are tried before an error is raised.

    Args:
        topics: The topics; those in JSON have no schema.

    Returns:
        One text for each change.

    Raises:
        SchemaRefused: The registry refuses a schema, or does not have one that somebody else registers. The text names
            the rule that a change breaks.
        NotDerivable: The format cannot express a contract.
        RegistryUnavailable: The registry gave no definite answer.
    """
    changes: list[str] = []
    problems: list[str] = []
    for topic in topics:
        if (codec := topic.codec) is None:
            continue
        try:
            changes += _register(topic.name, codec)
        except (SchemaRefused, NotDerivable) as error:
            problems.append(str(error))
    for change in changes:
        log.info("%s", change)
    if problems:
        raise SchemaRefused("; ".join(problems))
    return changes


def _register(topic: str, codec: Codec) -> list[str]:
    declared = codec.declared
    if codec.own_writer is None or codec.own is None:
        return []
    registry, subject = codec.registry, codec.own_subject
    changes: list[str] = []
    # Before the schema: the level must hold for it.
    if declared.registers and declared.compatibility and registry.level_of(subject) != declared.compatibility:
        registry.set_level(subject, declared.compatibility)
        changes.append(f"subject {subject}: compatibility {declared.compatibility}")
    if registry.look_up(subject, codec.own) is None:
        registered = codec.register()
        changes.append(f"subject {subject}: schema of topic {topic} registered, id {registered.id}")
    return changes
