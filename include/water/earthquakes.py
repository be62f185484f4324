"""The table `earthquakes`: the newest revision of each event on `seismic.events`, for reports and ad-hoc queries."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import confluent_kafka

log = logging.getLogger(__name__)


def record(records: Iterable[confluent_kafka.Message]) -> None:
    """Write records of `seismic.events` to the table; the operator's `apply_function_batch`.

    A newer revision replaces an older one, in whatever order they are read. So the same records may be written again,
    in any order.

    Args:
        records: Records as the client returns them. One that breaks the contract is logged and left out: the consumer
            `raise_alerts` keeps it as a dead letter, and its replay is a new record.

    Raises:
        KafkaException: The client returned an error instead of a record.
        SQLAlchemyError: The database failed.
    """
    from confluent_kafka import KafkaException
    from sqlalchemy.dialects.postgresql import insert

    from include.streams import ContractViolation, begin
    from include.water.tables import earthquakes
    from include.water.topics import SEISMIC_EVENTS

    rows = []
    for message in records:
        if (error := message.error()) is not None:
            raise KafkaException(error)
        try:
            rows.append(SEISMIC_EVENTS.parse(message.value()).model_dump(exclude={"version"}))
        except ContractViolation as violation:
            place = message.topic(), message.partition(), message.offset()
            log.warning("left out: %s-%d@%d: %s", *place, violation.reason)
    if not rows:
        return
    # Sorted: two tasks that write the same rows in different orders would deadlock.
    rows.sort(key=lambda row: (row["seismic_id"], row["updated_at"]))
    statement = insert(earthquakes)
    statement = statement.on_conflict_do_update(
        index_elements=[earthquakes.c.seismic_id],
        set_={name: statement.excluded[name] for name in rows[0]},
        where=earthquakes.c.updated_at < statement.excluded.updated_at,
    )
    with begin() as connection:
        connection.execute(statement, rows)
    log.info("recorded: events=%d", len(rows))
