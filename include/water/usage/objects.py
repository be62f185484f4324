"""Write customers' objects: many at a time, only those that differ, and never an older one over a newer one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

from include.streams.lake.buckets import ABSENT, Bucket, GenerationChanged
from include.water.usage.documents import FOLDER, JSON, content_hash, customer_of, encode, path_of
from include.water.usage.manifest import Manifest

log = logging.getLogger(__name__)

T = TypeVar("T")
# Each write mostly waits for the store. More threads than the client's connection pool holds would open new
# connections.
MAX_WRITERS = 10
# The most objects that a run that was killed has to write again.
BATCH = 1000
MAX_TRIES = 3


class NewerObject(Exception):
    """Another run has published newer usage of this customer."""


def write_objects(bucket: Bucket, manifest: Manifest, documents: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    """Bring the objects to the state of `documents`, and delete those of all other customers.

    The manifest is saved before the first batch, which fails if another run has taken over, and after every batch. It
    contains what was written even when the batch fails.

    Also written are objects that are not the ones that the manifest names: a run that was thought dead has written them
    while a later one had nothing to write there, or somebody has deleted them.

    Args:
        bucket: The artifacts bucket.
        manifest: The manifest of this publication, which has begun; it is updated.
        documents: {customer id: document}.

    Returns:
        (written, deleted): how many objects.

    Raises:
        NewerObject: Another run has published newer usage of a customer.
        GenerationChanged: Another run has saved the manifest.
    """
    manifest.save(bucket)
    there = {customer: entry.generation for entry in bucket.list(f"{FOLDER}/") if (customer := customer_of(entry.path))}
    as_of = manifest.publication
    changed = [
        customer
        for customer, document in documents.items()
        if manifest.objects.get(customer) != (content_hash(document), there.get(customer))
    ]
    gone = sorted({*manifest.objects, *there} - documents.keys())

    def known(customer: str) -> int:
        return manifest.objects.get(customer, ("", ABSENT))[1] if customer in there else ABSENT

    def write(customer: str) -> None:
        document = documents[customer]
        generation = put(bucket, customer, document, as_of, known(customer))
        manifest.objects[customer] = content_hash(document), generation

    def remove(customer: str) -> None:
        if customer in there:
            take_away(bucket, customer, as_of, known(customer), there[customer])
        manifest.objects.pop(customer, None)

    with ThreadPoolExecutor(MAX_WRITERS) as pool:
        for action, customers in ((write, changed), (remove, gone)):
            for batch in batches(customers, BATCH):
                _all(pool, action, batch, lambda: manifest.save(bucket))
    return len(changed), len(gone)


def put(bucket: Bucket, customer: str, document: Mapping[str, Any], as_of: int, known: int) -> int:
    """Write the object, if it still has the known generation or is older.

    Args:
        bucket: The artifacts bucket.
        customer: The customer's id.
        document: The document.
        as_of: As for `encode`.
        known: The generation that the manifest has.

    Returns:
        The object's generation.

    Raises:
        NewerObject: The object is of a later publication.
    """
    path, body = path_of(customer), encode(document, as_of)
    for _ in range(MAX_TRIES):
        try:
            return bucket.write(path, body, JSON, if_generation_match=known)
        except GenerationChanged:
            # An earlier try of this run was killed before the write was recorded, or another run writes too.
            found = bucket.read(path)
        if found is None:
            # It must not come back: the customer may have left.
            raise NewerObject("a customer's object was deleted while it was written")
        there, known = json.loads(found[0]), found[1]
        if content_hash(there) == content_hash(document):
            return known
        _require_older(there, as_of)
    raise NewerObject(f"a customer's object was changed {MAX_TRIES} times while it was written")


def take_away(bucket: Bucket, customer: str, as_of: int, known: int, there: int) -> None:
    """Delete the object, if it still has the known generation or is older.

    Args:
        bucket: The artifacts bucket.
        customer: The customer's id.
        as_of: As for `encode`.
        known: The generation that the manifest has.
        there: The generation that the object has.

    Raises:
        NewerObject: The object is of a later publication.
        GenerationChanged: Another run has just written it.
    """
    if there != known:
        found = bucket.read(path_of(customer))
        if found is None:
            return
        _require_older(json.loads(found[0]), as_of)
        there = found[1]
    bucket.delete(path_of(customer), if_generation_match=there)


def _require_older(document: Mapping[str, Any], as_of: int) -> None:
    if document.get("as_of", 0) >= as_of:
        raise NewerObject("a customer's object is of a later publication than this one")


def batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _all(
    pool: ThreadPoolExecutor, action: Callable[[str], None], items: Sequence[str], save: Callable[[], None]
) -> None:
    """Do the action for all items, then `save`.

    At the first failure, actions that have not started are canceled, finished ones are saved, and the error is raised.
    """
    futures: list[Future[None]] = [pool.submit(action, item) for item in items]
    _, waiting = wait(futures, return_when=FIRST_EXCEPTION)
    for future in waiting:
        future.cancel()
    wait(waiting)
    failed = next((error for future in futures if not future.cancelled() and (error := future.exception())), None)
    try:
        save()
    except GenerationChanged:
        # The failure says more; its cause is that another run has taken over.
        if failed is None:
            raise
    if failed is not None:
        raise failed
