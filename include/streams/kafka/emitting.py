"""Emit partition keys again at once, as a repair by a person. The Dag `maintain` does so too, after growing waits."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import func, select, update

from include.streams.kafka.claims import claimed_unhandled
from include.streams.kafka.consumers import Consumer
from include.streams.kafka.postponed import IN_ITS_RUN
from include.streams.operations.audit import Actor, Refused, RepairParams, RepairReport, repair_services
from include.streams.operations.database import begin
from include.streams.operations.tables import claims, postponed_ranges

# Longer ago than the longest wait between two emissions.
LONG_AGO = timedelta(days=1)
# Keys that the report lists.
MAX_LISTED = 20


class EmitKeys(RepairParams):
    """The parameters of `emit_keys`.

    Attributes:
        asset: The name of the keyed asset.
    """

    asset: str


class EmittedKeys(RepairReport):
    """The report of `emit_keys`.

    Attributes:
        keys: The keys that the caller must emit.
    """

    keys: list[str]


def emit_keys(params: EmitKeys, by: Actor, *, consumer: Consumer | None, find: Callable[[], list[str]]) -> EmittedKeys:
    """Find the keys of all messages that are claimed and not handled, without the wait for their next emission.

    A key whose run still waits or works gets a second run, which finds nothing to do.

    Args:
        params: The asset.
        by: Who emits.
        consumer: The consumer whose claims have the keys; None if a function of the package finds them.
        find: Returns the keys that are due, or raises AirflowSkipException if there are none; from `KeyedAsset`.

    Returns:
        The report.

    Raises:
        Refused: The reason is empty, the Dag that the keys start is paused, or there are no such keys.
        ClaimsUnreadable: The claimed messages cannot be read.
    """
    from airflow.sdk.exceptions import AirflowSkipException

    keys: list[str] = []

    def work() -> list[str]:
        if params["dry_run"]:
            return _open_lines(consumer)
        if consumer is not None:
            _make_due(consumer)
        try:
            keys.extend(find())
        except AirflowSkipException as nothing:
            raise Refused(f"no key is emitted: {nothing}") from None
        more = [f"and {len(keys) - MAX_LISTED} more"] if len(keys) > MAX_LISTED else []
        return [f"{len(keys)} keys are emitted again", *keys[:MAX_LISTED], *more]

    # Repeated if the run is cleared or retried: its task may have been killed before Airflow stored the keys.
    report = repair_services("emit_keys", params, by, work, repeats=True)
    return {**report, "keys": keys}


def _open_lines(consumer: Consumer | None) -> list[str]:
    if consumer is None:
        return ["the keys that are due would be emitted; a function of the package finds them"]
    of_consumer = (claims.c.consumer == consumer.name, claims.c.closed_at.is_(None))
    with begin() as connection:
        number = connection.scalar(select(func.count()).where(*of_consumer))
        waiting = claimed_unhandled(connection, consumer.name)
    lines = [f"{topic}: {count} claimed messages are not handled" for topic, count in sorted(waiting.items())]
    return [f"{number} claims of {consumer.name} are open", *lines]


def _make_due(consumer: Consumer) -> None:
    of_consumer = (claims.c.consumer == consumer.name, claims.c.closed_at.is_(None))
    with begin() as connection:
        long_ago = func.now() - LONG_AGO
        connection.execute(update(claims).where(*of_consumer).values(emitted_at=long_ago, emissions=1))
        waits = (
            postponed_ranges.c.claim_id == claims.c.id,
            *of_consumer,
            postponed_ranges.c.due_at > func.now(),
            postponed_ranges.c.tries != IN_ITS_RUN,
        )
        connection.execute(update(postponed_ranges).where(*waits).values(due_at=func.now()))
