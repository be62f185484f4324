"""Deliver the outbox: a task delivers its own rows right after its commit, the Dag `deliver_outbox` all others."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol

from sqlalchemy import Row

from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.producer import AcknowledgedProducer, OutgoingRecord, Refusal
from include.streams.operations import outbox, outbox_delivery
from include.streams.operations.outbox import Route, Written
from include.streams.operations.outbox_delivery import Answer, Attempt
from include.streams.operations.webhooks import Requests

log = logging.getLogger(__name__)

# How long a task tries to deliver its own rows at its end. The Dag delivers the remaining rows.
OWN_SECONDS = 10.0
# How long a task delivers records between its batches, in total, while its next messages wait. If it delivered all
# records at its end, a chunk of half a minute would delay the records of its first batches for so long.
BETWEEN_SECONDS = 2.0
# A broker that does not acknowledge a batch within this time counts as unavailable.
BATCH_SECONDS = 15.0
# Once a record of a batch is acknowledged, the batch ends after this long without a further answer: the partitions of
# the other records have no leader, or too few replicas, and good records must not wait for them. The second value is
# for topics of which this is known.
QUIET_SECONDS, KNOWN_QUIET_SECONDS = 2.0, 0.3
# Routes delivered at once; each needs a database connection (`operations.database.engine` has as many).
ROUTES_AT_ONCE = 8
# Between two queries for due routes while others are being delivered.
DUE_ROUTES_SECONDS = 0.5
# A run of the Dag starts no further route after this time; the next run continues.
RUN_SECONDS = 240.0


class DeclaredConsumer(Protocol):
    """A declared consumer, of either lane."""

    @property
    def name(self) -> str: ...

    @property
    def conn_id(self) -> str: ...


class RecordTransport:
    """Delivers rows that are Kafka records; their destination is a topic's name.

    Args:
        producer: Sends the records.
    """

    rows_at_once = 500
    # If a record has no answer, its partition is unavailable; the record itself is valid.
    is_one_receiver = False

    def __init__(self, producer: AcknowledgedProducer) -> None:
        self._producer = producer
        self._quiet_seconds = QUIET_SECONDS

    def why_skipped(self, destination: str) -> str | None:
        """None: Kafka records are never skipped."""
        return None

    def deliver(self, destination: str, rows: Sequence[Row], until: float) -> Attempt:
        """Send the rows and wait for the broker's answers.

        Args:
            destination: The topic's name.
            rows: Rows of the outbox.
            until: The deadline, a time of `time.monotonic`. At least one second is allowed in any case.

        Returns:
            The answers. `away` is set by an error that concerns the whole topic or the connection, not by partitions
            that do not answer while others do.
        """
        records = [OutgoingRecord(destination, row.key, row.body, outbox.record_headers(row)) for row in rows]
        seconds = min(BATCH_SECONDS, max(1.0, until - time.monotonic()))
        attempt = Attempt()
        try:
            # Rows of an earlier attempt get the whole time: perhaps their partition is only slow.
            is_first_attempt = all(row.last_error is None for row in rows)
            quiet_seconds = self._quiet_seconds if is_first_attempt else None
            refusals = self._producer.try_sending(records, seconds=seconds, quiet_seconds=quiet_seconds)
        except Exception as error:
            # The Airflow connection is not defined, or has unsafe settings.
            attempt.away = f"{type(error).__name__}: {error}"
            return attempt
        for row, refusal in zip(rows, refusals, strict=True):
            reason = f"topic {destination}: {refusal.code} {refusal.text}" if refusal else ""
            if refusal is None:
                attempt.answers[row.sequence] = (Answer.delivered, reason)
            elif refusal.is_record_error:
                attempt.answers[row.sequence] = (Answer.refused, reason)
            else:
                attempt.answers[row.sequence] = (Answer.none, reason)
        attempt.away = self._why_away(destination, refusals)
        return attempt

    def _why_away(self, topic: str, refusals: Sequence[Refusal | None]) -> str | None:
        """Why the whole topic is unavailable; None when at most some of its partitions are."""
        unanswered = [refusal for refusal in refusals if refusal is not None and not refusal.is_record_error]
        if not unanswered:
            return None
        is_partly = None in refusals or (
            all(refusal.is_unanswered for refusal in unanswered)
            and self._producer.has_other_leaders(topic, {refusal.partition for refusal in unanswered})
        )
        if is_partly:
            self._quiet_seconds = KNOWN_QUIET_SECONDS
            return None
        return f"topic {topic}: {unanswered[-1].code} {unanswered[-1].text}"


class OwnDelivery:
    """Delivers the rows that a task's own transactions have written: after each batch, and at the end.

    Never raises: the Dag delivers the remaining rows, and a failed delivery must not make the task handle its messages
    again.

    Args:
        producer: Sends the Kafka records.
    """

    def __init__(self, producer: AcknowledgedProducer) -> None:
        # The same objects for all batches: `Requests` remembers which connections are not defined.
        self._transports = {"message": RecordTransport(producer), "request": Requests()}
        self._spare_seconds = BETWEEN_SECONDS

    def between_batches(self, written: Written) -> None:
        """Deliver Kafka records while messages of the chunk wait, for BETWEEN_SECONDS in total.

        Requests are not delivered here: one that is not answered would take ten seconds.

        Args:
            written: {route: ids of rows}, from `outbox.gathered`. Routes that were tried are removed.
        """
        records = {route: ids for route, ids in written.items() if route.kind == "message"}
        if not records or self._spare_seconds <= 0:
            return
        started = time.monotonic()
        self.deliver(records, seconds=self._spare_seconds)
        self._spare_seconds -= time.monotonic() - started
        if self._spare_seconds > 0:
            for route in records:
                del written[route]

    def deliver(self, written: Written, *, seconds: float = OWN_SECONDS) -> None:
        """Make one attempt to deliver the rows.

        Args:
            written: {route: ids of rows}, from `outbox.gathered`.
            seconds: After this time no further row is tried.
        """
        if not written:
            return
        try:
            outbox_delivery.deliver_written(written, self._transports, seconds=seconds)
        except Exception as error:
            log.warning("outbox: left to the Dag deliver_outbox: %s: %s", type(error).__name__, error)


def deliver_due(consumers: Iterable[DeclaredConsumer], *, seconds: float = RUN_SECONDS) -> int:
    """Deliver the due rows of all routes, several routes at once, until no row is due.

    Routes that become due in the meantime are delivered too, so one slow receiver delays no other.

    Args:
        consumers: The declared consumers of both lanes. Each names the Kafka connection of its routes, such as the
            route of its dead letters that wait. A route of any other consumer uses `kafka_default`.
        seconds: After this time no further route is started; the next run continues.

    Returns:
        The number of rows that were delivered.

    Raises:
        Exception: The error of a route, such as an error of the database. No further route was started after it; the
            routes in progress were completed.
    """
    connections = {consumer.name: consumer.conn_id for consumer in consumers}
    until = time.monotonic() + seconds
    busy: dict[Future[int], Route] = {}
    delivered, failure = 0, None
    with ThreadPoolExecutor(ROUTES_AT_ONCE) as pool:
        while failure is None and time.monotonic() < until:
            for route in outbox_delivery.due_routes():
                if len(busy) < ROUTES_AT_ONCE and route not in busy.values():
                    busy[pool.submit(_deliver_route, route, connections)] = route
            if not busy:
                break
            done, _ = wait(busy, timeout=DUE_ROUTES_SECONDS, return_when=FIRST_COMPLETED)
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
        return outbox_delivery.deliver_route(route, Requests())
    with AcknowledgedProducer(connections.get(route.consumer, CONN_ID)) as producer:
        return outbox_delivery.deliver_route(route, RecordTransport(producer))
