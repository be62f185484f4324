"""What an event says, as a digest: tells a copy of an event from another event that carries its id."""

import hashlib
import json

from include.contracts.model import Contract

DIGEST_BYTES = 16


def digest(event: Contract) -> bytes:
    """The digest of an event's content.

    Of the parsed fields and not of the message's bytes: another order of the fields, or spaces, make no other event.
    Fields that hold their default do not count, so that an optional field that is added to a contract leaves the
    digests of earlier events as they are.

    Args:
        event: a parsed event.

    Returns:
        16 bytes. The same for two events exactly when the contract reads the same in both.
    """
    fields = event.model_dump(mode="json", exclude_defaults=True)
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
