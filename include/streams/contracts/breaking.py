"""Builds one message for each way of breaking a contract, for simulators and tests."""

from __future__ import annotations

import json

from include.streams.contracts.model import Contract
from include.streams.contracts.topics import Topic
from include.streams.contracts.violations import Reason


def broken(topic: Topic, event: Contract) -> dict[Reason, bytes | None]:
    """A message's value for each reason that a contract can give.

    Args:
        topic: The topic of the messages.
        event: A valid event, from which all values are built.

    Returns:
        {reason: value that is rejected for it}; None is the value of a tombstone.
    """
    _, good = topic.serialize(event)
    document = json.loads(good)

    def changed(**fields: object) -> bytes:
        return json.dumps({**document, **fields}).encode()

    too_much = "x" * (topic.max_bytes // 2) if isinstance(document[topic.key], str) else 2**80
    return {
        Reason.tombstone: None,
        Reason.too_large: good + b" " * topic.max_bytes,
        Reason.not_utf8: good[:-1] + b',"\xff":1}',
        Reason.not_json: good[:-1],
        Reason.wrong_version: changed(version=topic.version + 1),
        Reason.missing_field: json.dumps({k: v for k, v in document.items() if k != topic.key}).encode(),
        Reason.unknown_field: changed(not_in_the_contract=1),
        Reason.wrong_type: changed(**{topic.key: [document[topic.key]]}),
        Reason.out_of_bounds: changed(**{topic.key: too_much}),
    }
