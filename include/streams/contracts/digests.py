"""Digests of events: they distinguish a copy of an event from another event with the same id."""

import hashlib
import json
from functools import cache

from include.streams.contracts.foreign import ForeignContract, sources_of
from include.streams.contracts.model import Contract

DIGEST_BYTES = 16
SOURCES_BYTES = 4


def digest(event: Contract) -> bytes:
    """The digest of an event's content.

    It is computed from the parsed fields, not from the message's bytes. So the order of fields and spaces do not
    matter. Fields with their default value are left out, so that a new optional field in a contract does not change the
    digests of earlier events.

    Args:
        event: A parsed event.

    Returns:
        16 bytes, equal for two events if and only if all of their fields have equal values. For a foreign contract,
        these follow 4 bytes that depend on the fields that it picks, and on their sources.
    """
    fields = event.model_dump(mode="json", exclude_defaults=True)
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    content = hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
    return _sources(type(event)) + content if isinstance(event, ForeignContract) else content


def differ(first: bytes, second: bytes) -> bool:
    """Whether two digests prove that two events with one id have different content.

    They do not prove it if a foreign contract has picked other fields for the first event than for the second: one more
    picked field changes the digest of every message, although the message is the same.

    Args:
        first: The digest of one event.
        second: The digest of the other event.
    """
    comparable = first[:-DIGEST_BYTES] == second[:-DIGEST_BYTES]
    return comparable and first != second


@cache
def _sources(contract: type[ForeignContract]) -> bytes:
    listed = "\n".join(sorted(f"{name} {source}" for name, source in sources_of(contract).items()))
    return hashlib.blake2b(listed.encode(), digest_size=SOURCES_BYTES).digest()
