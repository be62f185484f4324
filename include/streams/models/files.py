"""Convert models to bytes and back, in the format of skops: an archive of arrays and a tree of types, without code.

Anyone who can write to the bucket can replace a model. So loading does not trust the file: every type in it must be on
the list in the caller's source code. (A pickle, which joblib writes too, runs any code that it contains.)
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Collection, Iterator
from typing import Any

# The allowed nodes of the tree: they hold data, name a type, or create an object of a listed type and set its
# attributes. Nodes that call something (functions, methods, partials, operators, reduce) are not allowed.
LOADERS = frozenset(
    {
        "CachedNode", "DTypeNode", "DictNode", "JsonNode", "ListNode", "NdArrayNode", "ObjectNode", "TupleNode",
        "TypeNode",
    }
)  # fmt: skip
SCHEMA = "schema.json"
# Limited, because an archive of a few kilobytes can unpack to gigabytes.
MAX_UNPACKED_BYTES = 256 * 1024**2


class UntrustedModel(Exception):
    """The file was not loaded: it contains a type or node that is not allowed, or it is not a model file."""


def to_bytes(model: Any, allowed: Collection[str]) -> bytes:
    """Convert a model to the content of a file.

    Args:
        model: The model.
        allowed: The allowed types, as "module.class".

    Raises:
        UntrustedModel: The file could not be loaded again with these types.
    """
    data = _skops().dumps(model, compression=zipfile.ZIP_DEFLATED)
    check(data, allowed)
    return data


def from_bytes(data: bytes, allowed: Collection[str]) -> Any:
    """Load a model. The whole file is checked before any object is created.

    Args:
        data: The content of the file.
        allowed: The allowed types, as "module.class".

    Raises:
        UntrustedModel: The file contains a type or node that is not allowed, or it is not a model file.
    """
    skops = _skops()
    from skops.io.exceptions import UntrustedTypesFoundException

    check(data, allowed)
    try:
        return skops.loads(data, trusted=sorted(allowed))
    except UntrustedTypesFoundException as error:
        raise UntrustedModel(str(error)) from error


def check(data: bytes, allowed: Collection[str]) -> None:
    """Check that every type in the file is allowed.

    skops has its own list of hundreds of trusted types. `allowed` is shorter: it has only the types of this model.

    Args:
        data: The content of the file.
        allowed: The allowed types, as "module.class".

    Raises:
        UntrustedModel: The file contains a type or node that is not allowed, or it is not a model file.
    """
    types, loaders = _contents(data)
    if foreign := sorted(types - set(allowed)):
        raise UntrustedModel(f"types that are not on the list: {', '.join(foreign[:5])}; the model was not loaded")
    if foreign := sorted(loaders - LOADERS):
        raise UntrustedModel(f"nodes that are not only data: {', '.join(foreign[:5])}; the model was not loaded")


def types_in(data: bytes) -> list[str]:
    """Every type in the file, to help to write the list of allowed types. Nothing is loaded."""
    return sorted(_contents(data)[0])


def _skops() -> Any:
    """Import skops without warnings: it asks every loaded module for functions, and Airflow's modules then warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import skops.io
    return skops.io


def _contents(data: bytes) -> tuple[set[str], set[str]]:
    """(types, loaders) of all nodes of the tree."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_UNPACKED_BYTES:
                raise UntrustedModel(f"unpacks to more than {MAX_UNPACKED_BYTES} bytes; the model was not loaded")
            tree = json.loads(archive.read(SCHEMA))
    except (zipfile.BadZipFile, KeyError, ValueError, RecursionError) as error:
        raise UntrustedModel(f"no model file: {type(error).__name__}: {error}") from error
    types, loaders = set(), set()
    for node in _nodes(tree):
        types.add(f"{node.get('__module__')}.{node.get('__class__')}")
        loaders.add(str(node.get("__loader__")))
    return types, loaders


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every dictionary in the tree that skops could interpret as a node."""
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if {"__class__", "__module__", "__loader__"} & item.keys():
                yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
