"""The topics of the water utility and the contracts of their messages.

Every Dag file imports this module, so it imports only pydantic.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from include.streams import Contract, Personal, Registry, Topic
from include.streams.contracts.types import Day, Identifier, Latitude, Line, Longitude, Text, UtcTime, utc_text

DistrictId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=40, description="a part of the network")]
SiteId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=40, description="a plant, pump, tank or main")]
MeterId = Annotated[str, Field(pattern=r"^M-[0-9]{6}$", max_length=8)]
CustomerId = Annotated[str, Field(pattern=r"^C-[0-9]{6,10}$", max_length=12)]


class Channel(StrEnum):
    """The way a customer's request came in."""

    app = "app"
    web = "web"
    phone = "phone"
    email = "email"


class ServiceRequest(Contract):
    """A customer asks for something, in their own words."""

    version: Literal[1]
    request_id: Annotated[str, Field(pattern=r"^SR-[0-9]{8,12}$", max_length=15)]
    received_at: UtcTime
    channel: Channel
    customer_id: Annotated[CustomerId, Personal()]
    district_id: DistrictId | None = Field(description="null if the address could not be placed in the network")
    address: Annotated[Line, Field(max_length=200), Personal()] | None = Field(
        description="where the trouble is, as given"
    )
    site_id: SiteId | None = Field(default=None, description="if the request names one")
    subject: Annotated[Line, Field(max_length=150), Personal()]
    text: Annotated[
        Text, Field(min_length=1, max_length=4000, description="written by the customer: untrusted"), Personal()
    ]

    event_id_sql: ClassVar[str | None] = "request_id"

    @property
    def event_id(self) -> str:
        return self.request_id


class MeterReading(Contract):
    """The state of a water meter's counter at one moment."""

    version: Literal[1]
    meter_id: MeterId
    district_id: DistrictId
    read_at: UtcTime
    litres_total: Annotated[int, Field(ge=0, le=10**12, description="the counter since installation")]
    battery_percent: Annotated[int, Field(ge=0, le=100)] | None = None

    event_id_sql: ClassVar[str | None] = "meter_id || '@' || utc_text(read_at)"

    @property
    def event_id(self) -> str:
        return f"{self.meter_id}@{utc_text(self.read_at)}"


class ReviewStatus(StrEnum):
    """What the seismic network says about an event: computed, looked at by a person, or withdrawn."""

    automatic = "automatic"
    reviewed = "reviewed"
    deleted = "deleted"


class SeismicEvent(Contract):
    """One revision of an earthquake (or other tremor), as a seismic network published it."""

    version: Literal[1]
    seismic_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]+$", min_length=3, max_length=64)]
    updated_at: UtcTime = Field(description="when this revision was published")
    occurred_at: UtcTime
    magnitude: Annotated[float, Field(ge=-5, le=11)] | None = Field(description="null until one is computed")
    magnitude_type: Annotated[Line, Field(max_length=16)] | None
    depth_km: Annotated[float, Field(ge=-100, le=1000)] | None
    latitude: Latitude
    longitude: Longitude
    place: Annotated[Line, Field(max_length=250)] | None
    status: ReviewStatus
    kind: Annotated[Line, Field(max_length=40, description='"earthquake", "quarry blast" and others')]

    @property
    def event_id(self) -> str:
        # Each revision is an event of its own; the same revision read twice from the feed is one event.
        return f"{self.seismic_id}@{utc_text(self.updated_at)}"


class LeakDetected(Contract):
    """A district lost water in one night: its inflow was higher than its use."""

    version: Literal[1]
    leak_key: Annotated[Identifier, Field(description="the same for the same leak and night, see `key_for`")]
    district_id: DistrictId
    night: Day = Field(description="the day on which the night began")
    litres_per_hour: Annotated[float, Field(gt=0, le=10_000_000, description="estimated loss")]
    confidence: Annotated[float, Field(ge=0, le=1)]
    model_version: Annotated[Identifier, Field(max_length=64)]
    detected_at: UtcTime

    @property
    def event_id(self) -> str:
        # Without model or time: when a night is judged again, its leak has the same id.
        return self.leak_key

    @staticmethod
    def key_for(district_id: str, night: Day, number: int = 1) -> str:
        """The key of the district's first, second, ... leak of a night."""
        return f"{district_id}/{night.isoformat()}/{number}"


class AlertKind(StrEnum):
    seismic = "seismic"
    leak = "leak"


class Severity(StrEnum):
    """How fast somebody must act, least first."""

    minor = "minor"
    major = "major"
    critical = "critical"

    @property
    def rank(self) -> int:
        return list(Severity).index(self)


class AlertRaised(Contract):
    """An alert is new, or has become more severe."""

    version: Literal[1]
    alert_id: Annotated[Identifier, Field(max_length=120)]
    revision: Annotated[int, Field(ge=1, le=1000, description="1 when new, one more with each rise of severity")]
    kind: AlertKind
    severity: Severity
    district_id: DistrictId | None
    site_id: SiteId | None
    title: Annotated[Line, Field(max_length=300)]
    raised_at: UtcTime
    source_event_id: Annotated[Identifier, Field(max_length=160)]
    source_topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=249)]
    source_partition: Annotated[int, Field(ge=0, le=2**31 - 1)]
    source_offset: Annotated[int, Field(ge=0, le=2**63 - 1)]

    @property
    def event_id(self) -> str:
        return f"{self.alert_id}#{self.revision}"


class Action(StrEnum):
    """All that triage can propose, and all that a work order can ask for. Nothing else exists for the executor."""

    send_information = "send_information"
    open_ticket = "open_ticket"
    schedule_inspection = "schedule_inspection"
    dispatch_crew = "dispatch_crew"
    close_valve = "close_valve"
    advise_not_to_drink = "advise_not_to_drink"
    # Nothing happens until a person has looked at the request.
    hand_to_person = "hand_to_person"


class TargetKind(StrEnum):
    """What an action is done to."""

    customer = "customer"
    district = "district"
    site = "site"


class OrderBasis(StrEnum):
    """Why the proposal may be executed, or why a person gets the request instead."""

    low_risk = "low_risk"
    approved = "approved"
    rejected = "rejected"
    expired = "expired"
    refused = "refused"


class WorkOrder(Contract):
    """An order to do what triage proposed or, if that may not be done, to look at the request.

    It contains no text of a customer or a model: only ids and words from closed sets.
    """

    version: Literal[1]
    work_order_id: Annotated[str, Field(pattern=r"^WO-SR-[0-9]{8,12}-[0-9a-f]{12}$", max_length=31)]
    decision_id: Annotated[str, Field(pattern=r"^SR-[0-9]{8,12}-[0-9a-f]{12}$", max_length=28)]
    request_id: Annotated[str, Field(pattern=r"^SR-[0-9]{8,12}$", max_length=15)]
    action: Action
    target_kind: TargetKind
    target_id: Annotated[Identifier, Field(max_length=40)]
    district_id: DistrictId | None
    severity: Severity
    basis: OrderBasis
    proposed_action: Action = Field(description="what triage proposed; another than `action` when a person has to look")
    ordered_at: UtcTime

    @property
    def event_id(self) -> str:
        # A decision has one work order, so the order's id contains the decision's.
        return self.work_order_id


SERVICE_REQUESTS = Topic(
    "service.requests",
    ServiceRequest,
    key="customer_id",
    partitions=2,
    retention=timedelta(days=30),
    landed=True,
    event_time="received_at",
    description="Customers' requests from app, web, phone and e-mail, one message each.",
)
METER_READINGS = Topic(
    "meter.readings",
    MeterReading,
    key="meter_id",
    partitions=4,
    retention=timedelta(days=14),
    max_bytes=4 * 1024,
    landed=True,
    event_time="read_at",
    description="Counter states of all water meters.",
)
SEISMIC_EVENTS = Topic(
    "seismic.events",
    SeismicEvent,
    key="seismic_id",
    partitions=2,
    retention=timedelta(days=30),
    max_bytes=16 * 1024,
    description="Earthquakes and their revisions, from a public feed.",
)
LEAKS_DETECTED = Topic(
    "leaks.detected",
    LeakDetected,
    key="district_id",
    partitions=4,
    retention=timedelta(days=90),
    max_bytes=16 * 1024,
    description="Water losses that the nightly detection found.",
)
ALERTS_RAISED = Topic(
    "alerts.raised",
    AlertRaised,
    key="alert_id",
    partitions=2,
    retention=timedelta(days=30),
    max_bytes=16 * 1024,
    description="Alerts for the people on duty.",
)

WORK_ORDERS = Topic(
    "work.orders",
    WorkOrder,
    # Orders for the same valve, crew or customer stay in order.
    key="target_id",
    partitions=2,
    retention=timedelta(days=90),
    max_bytes=4 * 1024,
    description="Work that triage has ordered: harmless, approved by a person, or for a person to look at.",
)

TOPICS = Registry(SERVICE_REQUESTS, METER_READINGS, SEISMIC_EVENTS, LEAKS_DETECTED, ALERTS_RAISED, WORK_ORDERS)
