"""Digests of events: they distinguish a copy of an event from another event with the same id."""

import hashlib
import json

from include.streams.contracts.model import Contract

DIGEST_BYTES = 16


def digest(event: Contract) -> bytes:
    """The digest of an event's content.

    It is computed from the parsed fields, not from the message's bytes, so the order of fields and spaces do not
    matter. Fields with their default value are left out, so that a new optional field in a contract does not change the
    digests of earlier events.

    Args:
        event: A parsed event.

    Returns:
        16 bytes, the same for two events exactly when all their fields have the same values.
    """
    fields = event.model_dump(mode="json", exclude_defaults=True)
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
