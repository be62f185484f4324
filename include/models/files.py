"""Models as bytes and back, in skops' format: an archive of arrays and a tree of types, with no code in it.

Who can write to the bucket can replace a model, so loading trusts nothing in the file: every type in it must be on the
list that the caller has in its source code. (A pickle, which joblib writes too, runs whatever it says.)
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Collection, Iterator
from typing import Any

# What skops may do with a node of the tree: hold data, name a type, or make an object of a listed type and set its
# attributes. Nodes that call something (functions, methods, partials, operators, reduce) are not among them.
LOADERS = frozenset(
    {
        "CachedNode", "DTypeNode", "DictNode", "JsonNode", "ListNode", "NdArrayNode", "ObjectNode", "TupleNode",
        "TypeNode",
    }
)  # fmt: skip
SCHEMA = "schema.json"
# An archive of a few kilobytes can unpack to gigabytes.
MAX_UNPACKED_BYTES = 256 * 1024**2


class UntrustedModel(Exception):
    """The file holds something that is not on the list, or is no model file: it was not loaded."""


def to_bytes(model: Any, allowed: Collection[str]) -> bytes:
    """The model as a file. Raises UntrustedModel when it could not be loaded again with this list."""
    data = _skops().dumps(model, compression=zipfile.ZIP_DEFLATED)
    check(data, allowed)
    return data


def from_bytes(data: bytes, allowed: Collection[str]) -> Any:
    """The model in the file; nothing of it is made before all of it is checked. Raises UntrustedModel."""
    skops = _skops()
    from skops.io.exceptions import UntrustedTypesFoundException

    check(data, allowed)
    try:
        return skops.loads(data, trusted=sorted(allowed))
    except UntrustedTypesFoundException as error:
        raise UntrustedModel(str(error)) from error


def check(data: bytes, allowed: Collection[str]) -> None:
    """Raise UntrustedModel unless every type in the file is allowed.

    skops has a list of its own, hundreds of types that it trusts; ours is only what this model is made of.
    """
    types, loaders = _contents(data)
    if foreign := sorted(types - set(allowed)):
        raise UntrustedModel(f"types that are not on the list: {', '.join(foreign[:5])}; the model was not loaded")
    if foreign := sorted(loaders - LOADERS):
        raise UntrustedModel(f"nodes that are not only data: {', '.join(foreign[:5])}; the model was not loaded")


def types_in(data: bytes) -> list[str]:
    """Every type in the file, for writing a list. Loads nothing."""
    return sorted(_contents(data)[0])


def _skops() -> Any:
    """skops, imported quietly: it looks for functions in every module that is loaded, and Airflow's then warn."""
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
    """Every dictionary that skops could take for a node, wherever it stands."""
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if {"__class__", "__module__", "__loader__"} & item.keys():
                yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
