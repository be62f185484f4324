"""Tables of the operational database.

A package of the example adds its own tables on the same `Base` and its own revisions (`migrate.py` finds them).
"""

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    # Names are given, so that a migration can drop what it made.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {datetime: DateTime(timezone=True), int: BigInteger, str: Text}


class ConsumerRow(Base):
    """A consumer; its row is the lock that claimers take."""

    __tablename__ = "consumers"

    name: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Position(Base):
    """The next offset that a consumer has not claimed. Kept when claims are pruned."""

    __tablename__ = "positions"

    consumer: Mapped[str] = mapped_column(ForeignKey("consumers.name"), primary_key=True)
    topic: Mapped[str] = mapped_column(primary_key=True)
    partition: Mapped[int] = mapped_column(primary_key=True)
    # A topic deleted and made again starts at offset 0 under the same name; only this id tells.
    topic_id: Mapped[str]
    next_offset: Mapped[int]


class Claim(Base):
    """The offset ranges that one Dag run owns; a row even when it claimed nothing."""

    __tablename__ = "claims"
    __table_args__ = (
        UniqueConstraint("consumer", "run_id"),
        Index("ix_claims_open", "consumer", "claimed_at", postgresql_where=text("closed_at is null")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    consumer: Mapped[str] = mapped_column(ForeignKey("consumers.name"))
    run_id: Mapped[str]
    claimed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # Set when every offset of every range is handled: until then the claim is open.
    closed_at: Mapped[datetime | None]


class ClaimRange(Base):
    """Offsets [start_offset, end_offset) of one partition, immutable.

    Retention had removed [start_offset, readable_from) before the claim was made: lost, and on record here.
    """

    __tablename__ = "claim_ranges"
    __table_args__ = (CheckConstraint("start_offset <= readable_from and readable_from <= end_offset", name="ordered"),)

    claim_id: Mapped[int] = mapped_column(ForeignKey("claims.id", ondelete="CASCADE"), primary_key=True)
    topic: Mapped[str] = mapped_column(primary_key=True)
    partition: Mapped[int] = mapped_column(primary_key=True)
    topic_id: Mapped[str]
    start_offset: Mapped[int]
    readable_from: Mapped[int]
    end_offset: Mapped[int]


class HandledRange(Base):
    """Offsets of a claim that are done: each has an inbox row, or holds no record, or is lost to retention."""

    __tablename__ = "handled_ranges"

    claim_id: Mapped[int] = mapped_column(ForeignKey("claims.id", ondelete="CASCADE"), primary_key=True)
    topic: Mapped[str] = mapped_column(primary_key=True)
    partition: Mapped[int] = mapped_column(primary_key=True)
    start_offset: Mapped[int] = mapped_column(primary_key=True)
    end_offset: Mapped[int] = mapped_column(primary_key=True)
    # Offsets that retention removed between the claim and the reading.
    lost: Mapped[int] = mapped_column(server_default="0")
    handled_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Outcome(StrEnum):
    handled = "handled"
    duplicate = "duplicate"
    dead_letter = "dead_letter"


class InboxEntry(Base):
    """One row for every message a consumer is done with.

    Two unique keys: the coordinates stop redelivery; the event id stops what a producer sent twice. Coordinates
    hold the topic's id, because a topic that was made again uses the same offsets for other messages.
    """

    __tablename__ = "inbox"
    __table_args__ = (
        CheckConstraint("outcome in ('handled', 'duplicate', 'dead_letter')", name="outcome"),
        Index(
            "uq_inbox_event",
            "consumer",
            "contract",
            "event_id",
            unique=True,
            postgresql_where=text("outcome = 'handled'"),
        ),
        Index("ix_inbox_recorded_at", "recorded_at"),
    )

    consumer: Mapped[str] = mapped_column(primary_key=True)
    topic_id: Mapped[str] = mapped_column(primary_key=True)
    partition: Mapped[int] = mapped_column(primary_key=True)
    offset: Mapped[int] = mapped_column(primary_key=True)
    topic: Mapped[str]
    contract: Mapped[str]
    event_id: Mapped[str | None]
    outcome: Mapped[Outcome] = mapped_column(String(16))
    # Why a dead letter is one (a Reason) and where in the message; null otherwise.
    reason: Mapped[str | None]
    detail: Mapped[str | None]
    run_id: Mapped[str]
    recorded_at: Mapped[datetime] = mapped_column(server_default=func.now())


class OutboxEntry(Base):
    """Something that must leave the database: written with the effect, delivered afterwards at least once.

    `id` is the idempotency key that the receiver sees. `state` is pending, delivered, skipped (its connection
    is not defined) or failed (refused too often; kept, and an alarm is open).
    """

    __tablename__ = "outbox"
    __table_args__ = (
        CheckConstraint("state in ('pending', 'delivered', 'skipped', 'failed')", name="state"),
        CheckConstraint("kind in ('message', 'request')", name="kind"),
        Index("ix_outbox_pending", "consumer", "sequence", postgresql_where=text("state = 'pending'")),
    )

    sequence: Mapped[int] = mapped_column(Identity(), primary_key=True)
    id: Mapped[UUID] = mapped_column(server_default=text("gen_random_uuid()"), unique=True)
    consumer: Mapped[str]
    kind: Mapped[str] = mapped_column(String(16))
    # A topic's name, or the id of an Airflow HTTP connection.
    destination: Mapped[str]
    key: Mapped[bytes | None] = mapped_column(LargeBinary)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    headers: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
    state: Mapped[str] = mapped_column(String(16), server_default="pending")
    attempts: Mapped[int] = mapped_column(server_default="0")
    last_error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    delivered_at: Mapped[datetime | None]


class Alarm(Base):
    """Something a person must look at. One row an episode: open until what caused it is gone."""

    __tablename__ = "alarms"
    __table_args__ = (
        Index("uq_alarms_open", "source", "kind", unique=True, postgresql_where=text("closed_at is null")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    source: Mapped[str]
    kind: Mapped[str]
    message: Mapped[str]
    opened_at: Mapped[datetime] = mapped_column(server_default=func.now())
    closed_at: Mapped[datetime | None]
