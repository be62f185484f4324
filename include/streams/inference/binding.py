"""Binds an approval to a digest of the exact proposal.

A retried task keeps the text of its first request for approval. Without a digest that is compared when the proposal is
executed, an approval of the old text would execute the new proposal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(mapping: Mapping[str, Any]) -> str:
    """The same text for the same content in any order of keys: sorted keys, no spaces, no escapes for non-ASCII text.

    Args:
        mapping: The content: strings, integers, booleans, None, lists and mappings.

    Raises:
        TypeError: A value could change in JSON or a database: a key that is not a string, a float (PostgreSQL's jsonb
            may return 1e22 as an integer), a time or another object. Convert these to strings first.
    """
    return json.dumps(_checked(mapping), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def proposal_hash(mapping: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON, as 64 hexadecimal digits; raises TypeError as `canonical_json` does."""
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
    raise TypeError(
        f"a proposal cannot hold {type(value).__name__}: JSON or the database could change it; use a string"
    )
