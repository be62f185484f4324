"""Deliver the outbox: what a task wrote itself, right after its commit; the rest from the Dag `deliver_outbox`."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from sqlalchemy import Row

from include.kafka.connection import CONN_ID
from include.kafka.consumers import Consumer
from include.kafka.producer import AcknowledgedProducer, OutgoingRecord
from include.operations import outbox
from include.operations.outbox import Answer, Attempt, Route, Written
from include.operations.webhooks import Requests

log = logging.getLogger(__name__)

# A task's attempt for its own rows. What takes longer is the Dag's.
OWN_SECONDS = 10.0
# A broker that does not acknowledge a batch within this time is away.
BATCH_SECONDS = 15.0
# Routes delivered at once; each needs a database connection (`operations.database.engine` has as many).
ROUTES_AT_ONCE = 8
LOOK_SECONDS = 0.5
# One run of the Dag: after this time the next one goes on.
RUN_SECONDS = 240.0


class Messages:
    """The way of rows that are Kafka records: the destination is a topic."""

    rows_at_once = 500

    def __init__(self, producer: AcknowledgedProducer) -> None:
        self._producer = producer

    def why_skipped(self, destination: str) -> str | None:
        """Every row is delivered."""
        return None

    def deliver(self, destination: str, rows: Sequence[Row], until: float) -> Attempt:
        """Send the rows and wait for the broker's answers. What concerns the whole topic makes the route away."""
        records = [OutgoingRecord(destination, row.key, row.body, outbox.record_headers(row)) for row in rows]
        seconds = min(BATCH_SECONDS, max(1.0, until - time.monotonic()))
        attempt = Attempt()
        try:
            refusals = self._producer.try_sending(records, seconds=seconds)
        except Exception as error:
            # The connection: not defined, or with settings that are refused.
            attempt.away = f"{type(error).__name__}: {error}"
            return attempt
        for row, refusal in zip(rows, refusals, strict=True):
            reason = f"topic {destination}: {refusal.code} {refusal.text}" if refusal else ""
            if refusal is None:
                attempt.answers[row.sequence] = (Answer.delivered, reason)
            elif refusal.is_its_own:
                attempt.answers[row.sequence] = (Answer.refused, reason)
            else:
                attempt.answers[row.sequence] = (Answer.none, reason)
                attempt.away = reason
        return attempt


def deliver_written(written: Written, producer: AcknowledgedProducer) -> int:
    """One bounded attempt to deliver rows that the caller's own transactions have written.

    Never raises: what is left is delivered by the Dag, and a receiver is no reason to handle messages again.

    Args:
        written: Ids by route, from `outbox.gathered`.
        producer: Sends the Kafka records.

    Returns:
        How many rows were delivered.
    """
    if not written:
        return 0
    try:
        ways = {"message": Messages(producer), "request": Requests()}
        return outbox.deliver_written(written, ways, seconds=OWN_SECONDS)
    except Exception as error:
        log.warning("outbox: left to the Dag deliver_outbox: %s: %s", type(error).__name__, error)
        return 0


def deliver_due(consumers: Iterable[Consumer], *, seconds: float = RUN_SECONDS) -> int:
    """Deliver what is due on any route, several routes at once, until nothing is due.

    A route that becomes due meanwhile is taken up, so one slow receiver holds up no other.

    Args:
        consumers: Those whose records go through another Kafka connection than `kafka_default` are looked up here.
        seconds: After this time no further route is begun; the next run goes on.

    Returns:
        How many rows were delivered.

    Raises:
        Exception: what the database raised for a route; the others were delivered.
    """
    connections = {consumer.name: consumer.conn_id for consumer in consumers}
    until = time.monotonic() + seconds
    busy: dict[Future[int], Route] = {}
    delivered, failure = 0, None
    with ThreadPoolExecutor(ROUTES_AT_ONCE) as pool:
        while failure is None and time.monotonic() < until:
            for route in outbox.due_routes():
                if len(busy) < ROUTES_AT_ONCE and route not in busy.values():
                    busy[pool.submit(_deliver_route, route, connections)] = route
            if not busy:
                break
            done, _ = wait(busy, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                del busy[future]
                failure = future.exception() or failure
                delivered += 0 if future.exception() else future.result()
    if failure is not None:
        raise failure
    log.info("outbox: delivered %d rows", delivered)
    return delivered


def _deliver_route(route: Route, connections: Mapping[str, str]) -> int:
    if route.kind == "request":
        return outbox.deliver_route(route, Requests())
    with AcknowledgedProducer(connections.get(route.consumer, CONN_ID)) as producer:
        return outbox.deliver_route(route, Messages(producer))
