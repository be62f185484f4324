"""Write customers' objects: many at a time, only those that differ, and never older usage over newer usage."""

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
# Each write mostly waits for the store. More threads would need more connections than the client's pool has.
MAX_WRITERS = 10
# Objects between two saves of the manifest: the most that the retry of a killed run writes again.
BATCH = 1000
MAX_TRIES = 3


class NewerObject(Exception):
    """Another run has published newer usage of this customer."""


def write_objects(bucket: Bucket, manifest: Manifest, documents: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    """Write the customers' documents to their objects, and delete the objects of all other customers.

    The manifest is saved before the first batch, which fails if another run has taken over, and after every batch, also
    after a batch that failed.

    An object whose generation is not the one in the manifest is written too: a late run that was believed dead has
    written it, or somebody has deleted it.

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
    stored = {
        customer: entry.generation for entry in bucket.list(f"{FOLDER}/") if (customer := customer_of(entry.path))
    }
    as_of = manifest.publication
    changed = [
        customer
        for customer, document in documents.items()
        if manifest.objects.get(customer) != (content_hash(document), stored.get(customer))
    ]
    obsolete = sorted({*manifest.objects, *stored} - documents.keys())

    def known(customer: str) -> int:
        return manifest.objects.get(customer, ("", ABSENT))[1] if customer in stored else ABSENT

    def write(customer: str) -> None:
        document = documents[customer]
        generation = write_object(bucket, customer, document, as_of, known(customer))
        manifest.objects[customer] = content_hash(document), generation

    def remove(customer: str) -> None:
        if customer in stored:
            delete_object(bucket, customer, as_of, known(customer), stored[customer])
        manifest.objects.pop(customer, None)

    with ThreadPoolExecutor(MAX_WRITERS) as pool:
        for action, customers in ((write, changed), (remove, obsolete)):
            for batch in batches(customers, BATCH):
                _run_batch(pool, action, batch, lambda: manifest.save(bucket))
    return len(changed), len(obsolete)


def write_object(bucket: Bucket, customer: str, document: Mapping[str, Any], as_of: int, known: int) -> int:
    """Write the object, if it still has the known generation or is older.

    Args:
        bucket: The artifacts bucket.
        customer: The customer's id.
        document: The document.
        as_of: As for `encode`.
        known: The object's generation in the manifest.

    Returns:
        The object's new generation.

    Raises:
        NewerObject: The object is of a later publication.
    """
    path, body = path_of(customer), encode(document, as_of)
    for _ in range(MAX_TRIES):
        try:
            return bucket.write(path, body, JSON, if_generation_match=known)
        except GenerationChanged:
            # An earlier try of this run was killed before it recorded the write, or another run writes too.
            found = bucket.read(path)
        if found is None:
            # The object must not be recreated: the customer may have left.
            raise NewerObject("a customer's object was deleted while it was written")
        stored, known = json.loads(found[0]), found[1]
        if content_hash(stored) == content_hash(document):
            return known
        _require_older(stored, as_of)
    raise NewerObject(f"a customer's object was changed {MAX_TRIES} times while it was written")


def delete_object(bucket: Bucket, customer: str, as_of: int, known: int, stored: int) -> None:
    """Delete the object, if it still has the known generation or is older.

    Args:
        bucket: The artifacts bucket.
        customer: The customer's id.
        as_of: As for `encode`.
        known: The object's generation in the manifest.
        stored: The object's generation in the bucket.

    Raises:
        NewerObject: The object is of a later publication.
        GenerationChanged: Another run has just written it.
    """
    if stored != known:
        found = bucket.read(path_of(customer))
        if found is None:
            return
        _require_older(json.loads(found[0]), as_of)
        stored = found[1]
    bucket.delete(path_of(customer), if_generation_match=stored)


def _require_older(document: Mapping[str, Any], as_of: int) -> None:
    if document.get("as_of", 0) >= as_of:
        raise NewerObject("a customer's object is of a later publication than this one")


def batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _run_batch(
    pool: ThreadPoolExecutor, action: Callable[[str], None], items: Sequence[str], save: Callable[[], None]
) -> None:
    """Call the action with each item, then `save`.

    At the first failure, actions that have not started are canceled, `save` is called, and the error is raised.
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
        # Another run has taken over, and that caused the failure. The failure's error says more than this one.
        if failed is None:
            raise
    if failed is not None:
        raise failed
