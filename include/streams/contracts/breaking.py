"""Builds one message for each way of breaking a contract, for simulators and tests."""

from __future__ import annotations

import json
from typing import Any

from include.streams.contracts.foreign import ABSENT, At, ContractUnion, Headers, Payload, sources_of
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
    key = str(topic.key)
    too_much = "x" * (topic.max_bytes // 2) if isinstance(document[key], str) else 2**80
    others = {name: content for name, content in document.items() if name != key}
    return {
        **_unreadable(topic, good),
        Reason.wrong_version: _encoded({**document, "version": topic.version + 1}),
        Reason.missing_field: _encoded(others),
        Reason.unknown_field: _encoded({**document, "not_in_the_contract": 1}),
        Reason.wrong_type: _encoded({**document, key: [document[key]]}),
        Reason.out_of_bounds: _encoded({**document, key: too_much}),
    }


def broken_foreign(topic: Topic, good: bytes, headers: Headers = ()) -> dict[Reason, bytes | None]:
    """A message's value for each reason that a foreign contract can give.

    Args:
        topic: A topic that somebody else defines.
        good: The value of a valid message, from which all values are built.
        headers: The headers of that message.

    Returns:
        {reason: value that is rejected for it, with the same headers}. Without the reasons that take a required text
        or number in the payload, if the contract picks none.
    """
    payload = Payload(good, topic.max_bytes)
    union = topic.contract if isinstance(topic.contract, ContractUnion) else None
    contract: Any = union.of(payload, headers) if union else topic.contract
    found = _unreadable(topic, good)
    for name, source in sources_of(contract).items():
        if not isinstance(source, At) or not contract.model_fields[name].is_required():
            continue
        if union and source == union.by:
            continue
        content = payload.at(source)
        if type(content) in (str, int):
            room = topic.max_bytes - len(_changed(good, source, ""))
            too_much = "x" * room if isinstance(content, str) else 2**80
            found[Reason.missing_field] = _changed(good, source, ABSENT)
            found[Reason.wrong_type] = _changed(good, source, [content])
            found[Reason.out_of_bounds] = _changed(good, source, too_much)
            break
    return found


def _unreadable(topic: Topic, good: bytes) -> dict[Reason, bytes | None]:
    return {
        Reason.tombstone: None,
        Reason.too_large: good + b" " * topic.max_bytes,
        Reason.not_utf8: good.rstrip()[:-1] + b',"\xff":1}',
        Reason.not_json: good.rstrip()[:-1],
    }


def _changed(good: bytes, source: At, content: Any) -> bytes:
    document = json.loads(good)
    parent = document
    *way, last = source.names
    for name in way:
        parent = parent[name]
    del parent[last]
    if content is not ABSENT:
        parent[last] = content
    return _encoded(document)


def _encoded(document: Any) -> bytes:
    return json.dumps(document).encode()
