"""The example's tables in the operational database; made by the revisions in `include/water/migrations`."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from include.operations.models import Base


class AlertRow(Base):
    """An alert: one row for one earthquake or leak, however often it is revised."""

    __tablename__ = "alerts"
    __table_args__ = (
        CheckConstraint("kind in ('seismic', 'leak')", name="kind"),
        CheckConstraint("severity in ('minor', 'major', 'critical')", name="severity"),
        Index("ix_alerts_updated_at", "updated_at"),
    )

    alert_id: Mapped[str] = mapped_column(primary_key=True)
    # 1 when raised; one more with each rise of severity.
    revision: Mapped[int]
    kind: Mapped[str]
    severity: Mapped[str]
    # The severity's place in their order, so that one statement can compare and replace.
    severity_rank: Mapped[int]
    district_id: Mapped[str | None]
    site_id: Mapped[str | None]
    title: Mapped[str]
    raised_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # The message that raised it, or raised it to this severity.
    source_event_id: Mapped[str]
    source_topic: Mapped[str]
    source_partition: Mapped[int]
    source_offset: Mapped[int]
    source_timestamp: Mapped[datetime | None]


class PublishedSeismicEvent(Base):
    """A revision of the seismic feed that is in Kafka: in `seismic.events`, or in its dead-letter topic."""

    __tablename__ = "published_seismic_events"
    __table_args__ = (Index("ix_published_seismic_events_published_at", "published_at"),)

    # The event's id, or "rejected:" and a digest of what the feed sent.
    event_id: Mapped[str] = mapped_column(primary_key=True)
    published_at: Mapped[datetime] = mapped_column(server_default=func.now())
