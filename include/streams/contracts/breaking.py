"""Build invalid messages, one for each reason that a contract can give, for simulators and tests."""

from __future__ import annotations

import json
from typing import Any

from include.streams.contracts.foreign import ABSENT, At, ContractUnion, Headers, Payload, sources_of
from include.streams.contracts.model import Contract
from include.streams.contracts.topics import Topic
from include.streams.contracts.violations import Reason


def broken(topic: Topic, event: Contract) -> dict[Reason, bytes | None]:
    """Build an invalid value for each reason that a contract can give.

    Args:
        topic: The topic of the messages.
        event: A valid event, from which all values are built.

    Returns:
        {reason: value that is rejected for this reason}; None is the value of a tombstone.
    """
    _, valid = topic.serialize(event)
    document = json.loads(valid)
    key = str(topic.key)
    out_of_bounds = "x" * (topic.max_bytes // 2) if isinstance(document[key], str) else 2**80
    without_key = {name: content for name, content in document.items() if name != key}
    return {
        **_unreadable(topic, valid),
        Reason.wrong_version: _encoded({**document, "version": topic.version + 1}),
        Reason.missing_field: _encoded(without_key),
        Reason.unknown_field: _encoded({**document, "not_in_the_contract": 1}),
        Reason.wrong_type: _encoded({**document, key: [document[key]]}),
        Reason.out_of_bounds: _encoded({**document, key: out_of_bounds}),
    }


def broken_foreign(topic: Topic, valid: bytes, headers: Headers = ()) -> dict[Reason, bytes | None]:
    """Build an invalid value for each reason that a foreign contract can give.

    Args:
        topic: A topic that somebody else defines.
        valid: The value of a valid message, from which all values are built.
        headers: The headers of that message.

    Returns:
        {reason: value that is rejected for this reason, with the same headers}. If the contract picks no required text
        or number from the payload, the reasons that need one are left out.
    """
    payload = Payload(valid, topic.max_bytes)
    union = topic.contract if isinstance(topic.contract, ContractUnion) else None
    contract: Any = union.of(payload, headers) if union else topic.contract
    values = _unreadable(topic, valid)
    for name, source in sources_of(contract).items():
        if not isinstance(source, At) or not contract.model_fields[name].is_required():
            continue
        if union and source == union.by:
            continue
        content = payload.at(source)
        if type(content) in (str, int):
            free_bytes = topic.max_bytes - len(_changed(valid, source, ""))
            out_of_bounds = "x" * free_bytes if isinstance(content, str) else 2**80
            values[Reason.missing_field] = _changed(valid, source, ABSENT)
            values[Reason.wrong_type] = _changed(valid, source, [content])
            values[Reason.out_of_bounds] = _changed(valid, source, out_of_bounds)
            break
    return values


def _unreadable(topic: Topic, valid: bytes) -> dict[Reason, bytes | None]:
    return {
        Reason.tombstone: None,
        Reason.too_large: valid + b" " * topic.max_bytes,
        Reason.not_utf8: valid.rstrip()[:-1] + b',"\xff":1}',
        Reason.not_json: valid.rstrip()[:-1],
    }


def _changed(valid: bytes, source: At, content: Any) -> bytes:
    """The value with other content at a path; ABSENT removes the member."""
    document = json.loads(valid)
    parent = document
    *parents, last = source.names
    for name in parents:
        parent = parent[name]
    del parent[last]
    if content is not ABSENT:
        parent[last] = content
    return _encoded(document)


def _encoded(document: Any) -> bytes:
    return json.dumps(document).encode()
