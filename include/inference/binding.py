"""What an approval is bound to: a digest of exactly what was proposed.

A task that is retried keeps the text of the approval that it asked for first. Without a digest that is compared when
the proposal is executed, an approval of the old text would execute the new proposal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(mapping: Mapping[str, Any]) -> str:
    """One text for one content, whatever the order of the keys: no spaces, sorted keys, no escapes.

    Raises TypeError for what would not come back the same from JSON or a database: keys that are no strings, floats
    (PostgreSQL's jsonb may return 1e22 as an integer), times and other objects. Write those as strings first.
    """
    return json.dumps(_checked(mapping), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def proposal_hash(mapping: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(mapping).encode()).hexdigest()


def _checked(value: Any) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"a key of a proposal must be a string, not {type(key).__name__}")
        return {key: _checked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(item) for item in value]
    raise TypeError(f"a proposal cannot hold {type(value).__name__}: it would not come back the same; use a string")
