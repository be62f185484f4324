"""The example's tables in the operational database, created by the revisions in `include/water/migrations`."""

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Date, Float, ForeignKey, Index, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from include.streams import metadata
from include.streams.operations.tables import Timestamp, now_column

# An alert: one row for one earthquake or leak, however often it is revised.
alerts = Table(
    "alerts",
    metadata,
    Column("alert_id", Text, primary_key=True),
    # 1 when raised; one more with each rise of severity.
    Column("revision", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("severity", Text, nullable=False),
    # The severity's rank, so that one statement can compare and replace.
    Column("severity_rank", BigInteger, nullable=False),
    Column("district_id", Text),
    Column("site_id", Text),
    Column("title", Text, nullable=False),
    now_column("raised_at"),
    now_column("updated_at"),
    # The message that raised the alert, or raised it to this severity.
    Column("source_event_id", Text, nullable=False),
    Column("source_topic", Text, nullable=False),
    Column("source_partition", BigInteger, nullable=False),
    Column("source_offset", BigInteger, nullable=False),
    Column("source_timestamp", Timestamp),
    CheckConstraint("kind in ('seismic', 'leak')", name="kind"),
    CheckConstraint("severity in ('minor', 'major', 'critical')", name="severity"),
    Index("ix_alerts_updated_at", "updated_at"),
)

# A revision of the seismic feed that is in Kafka: in `seismic.events`, or in its dead-letter topic.
published_seismic_events = Table(
    "published_seismic_events",
    metadata,
    # The event's id, or "rejected:" and a hash of what the feed sent.
    Column("event_id", Text, primary_key=True),
    now_column("published_at"),
    Index("ix_published_seismic_events_published_at", "published_at"),
)

# The newest revision of each event on `seismic.events`; a withdrawn event stays, with the status "deleted".
earthquakes = Table(
    "earthquakes",
    metadata,
    Column("seismic_id", Text, primary_key=True),
    Column("updated_at", Timestamp, nullable=False),
    Column("occurred_at", Timestamp, nullable=False),
    Column("magnitude", Float),
    Column("magnitude_type", Text),
    Column("depth_km", Float),
    Column("latitude", Float, nullable=False),
    Column("longitude", Float, nullable=False),
    Column("place", Text),
    Column("status", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Index("ix_earthquakes_updated_at", "updated_at"),
)

# The outcome of a customer's request: what an engine proposed and why, and what code and people decided. A request has
# one decision, however often its message is read.
decisions = Table(
    "decisions",
    metadata,
    # The request's id and the beginning of proposal_hash: another proposal is another decision.
    Column("decision_id", Text, primary_key=True),
    Column("request_id", Text, nullable=False, unique=True),
    Column("customer_id", Text, nullable=False),
    Column("district_id", Text),
    # The proposal; proposal_hash covers all of it.
    Column("category", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("severity_rank", BigInteger, nullable=False),
    Column("summary", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target_kind", Text, nullable=False),
    Column("target_id", Text, nullable=False),
    Column("evidence", JSONB, nullable=False),
    Column("risk", Text, nullable=False),
    Column("proposal_hash", Text, nullable=False),
    Column("policy_version", Text, nullable=False),
    Column("state", Text, nullable=False),
    # For a refused decision: why the proposal may not be executed.
    Column("refusal", Text),
    # How the engine made the proposal.
    Column("engine", Text, nullable=False),
    Column("model_asked", Text),
    Column("model_answered", Text),
    Column("prompt_version", Text),
    Column("fallback_reason", Text),
    Column("tool_calls", JSONB, nullable=False),
    Column("usage", JSONB, nullable=False),
    Column("explanation", JSONB, nullable=False),
    # The run of execute_decisions that asks for approval; null until a run does.
    Column("approval_run_id", Text),
    Column("deadline_at", Timestamp),
    Column("verdict", Text),
    Column("approver", Text),
    Column("verdict_at", Timestamp),
    Column("source_topic", Text, nullable=False),
    Column("source_partition", BigInteger, nullable=False),
    Column("source_offset", BigInteger, nullable=False),
    Column("source_timestamp", Timestamp),
    now_column("decided_at"),
    Column("executed_at", Timestamp),
    CheckConstraint("severity in ('minor', 'major', 'critical')", name="severity"),
    CheckConstraint("risk in ('low', 'high')", name="risk"),
    CheckConstraint("state in ('executed', 'awaiting_approval', 'rejected', 'expired', 'refused')", name="state"),
    CheckConstraint("engine in ('llm', 'offline')", name="engine"),
    CheckConstraint("verdict in ('approved', 'rejected', 'expired')", name="verdict"),
    # Protects against bugs: nothing risky counts as executed without a person's approval in time.
    CheckConstraint(
        "state <> 'executed' or risk = 'low' or coalesce("
        "verdict = 'approved' and approver <> '' and verdict_at <= deadline_at, false)",
        name="approved",
    ),
    CheckConstraint("state <> 'awaiting_approval' or deadline_at is not null", name="deadline"),
    Index("ix_decisions_decided_at", "decided_at"),
    Index("ix_decisions_customer", "customer_id", "decided_at"),
    Index("ix_decisions_district", "district_id", "decided_at"),
    Index("ix_decisions_awaiting", "decided_at", postgresql_where=text("state = 'awaiting_approval'")),
)

# Work for a person or a crew: at most one order per decision.
work_orders = Table(
    "work_orders",
    metadata,
    Column("work_order_id", Text, primary_key=True),
    Column("decision_id", Text, ForeignKey("decisions.decision_id"), nullable=False, unique=True),
    Column("action", Text, nullable=False),
    Column("target_kind", Text, nullable=False),
    Column("target_id", Text, nullable=False),
    Column("district_id", Text),
    Column("severity", Text, nullable=False),
    Column("basis", Text, nullable=False),
    now_column("created_at"),
    CheckConstraint("severity in ('minor', 'major', 'critical')", name="severity"),
    CheckConstraint("basis in ('low_risk', 'approved', 'rejected', 'expired', 'refused')", name="basis"),
    Index("ix_work_orders_created_at", "created_at"),
)

# The content of one tile of the live board: computed by the Dag refresh_live_board, read by every browser.
board_tiles = Table(
    "board_tiles",
    metadata,
    # A district's id, or "elsewhere".
    Column("tile", Text, primary_key=True),
    Column("content", JSONB, nullable=False),
    # The content contains the alerts that changed after this time.
    Column("since", Timestamp, nullable=False),
    now_column("refreshed_at"),
)

# Files of sites and customers that were dropped below register/incoming/, one row for each content: a file that is
# replaced under its name has another generation.
register_files = Table(
    "register_files",
    metadata,
    Column("object_name", Text, primary_key=True),
    Column("generation", BigInteger, primary_key=True),
    Column("kind", Text),
    Column("state", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    # Where the file is now and, when it was rejected, its report.
    Column("stored_as", Text, nullable=False),
    Column("uploaded_at", Timestamp, nullable=False),
    now_column("recorded_at"),
    CheckConstraint("kind in ('sites', 'customers')", name="kind"),
    CheckConstraint("state in ('applied', 'rejected')", name="state"),
    Index("ix_register_files_recorded_at", "recorded_at"),
)


def _source_columns() -> list[Column]:
    """The file that a row came from. Files are applied in any order; the newest upload wins."""
    return [
        Column("object_name", Text, nullable=False),
        Column("generation", BigInteger, nullable=False),
        Column("uploaded_at", Timestamp, nullable=False),
        now_column("imported_at"),
    ]


register_sites = Table(
    "register_sites",
    metadata,
    Column("site_id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("district_id", Text, nullable=False),
    Column("latitude", Float, nullable=False),
    Column("longitude", Float, nullable=False),
    *_source_columns(),
)
register_customers = Table(
    "register_customers",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("meter_id", Text, nullable=False),
    Column("district_id", Text, nullable=False),
    # People in the household.
    Column("persons", BigInteger, nullable=False),
    *_source_columns(),
    Index("ix_register_customers_meter_id", "meter_id"),
)

# Hours of clean readings that a run has replaced: its own rows of an earlier try. The run recomputes their flows,
# although it may no longer have a reading in these hours. The rows are deleted with the claim.
replaced_hours = Table(
    "replaced_hours",
    metadata,
    Column("claim_id", BigInteger, ForeignKey("claims.id", ondelete="CASCADE"), primary_key=True),
    Column("hour", Timestamp, primary_key=True),
)

# Leaks that crews have found: the training data of the model. Nights as in `water.district_nights`; last_night is null
# while the leak runs.
confirmed_leaks = Table(
    "confirmed_leaks",
    metadata,
    Column("district_id", Text, primary_key=True),
    Column("first_night", Date, primary_key=True),
    Column("last_night", Date),
    # For example a work order's id.
    Column("source", Text, nullable=False),
    now_column("confirmed_at"),
    CheckConstraint("first_night <= last_night", name="ordered"),
)

# The judgement of a night, by which model and on which data: the night is judged again when its data change.
judged_nights = Table(
    "judged_nights",
    metadata,
    Column("district_id", Text, primary_key=True),
    Column("night", Date, primary_key=True),
    # A hash of the night's features.
    Column("fingerprint", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("score", Float, nullable=False),
    Column("alarm", Boolean, nullable=False),
    now_column("judged_at"),
)

# A row for each night with an alarm. Nights of one leak share `reported_as`, the key of the night whose event reported
# it; only that night's event is produced.
leaks = Table(
    "leaks",
    metadata,
    Column("leak_key", Text, primary_key=True),
    Column("district_id", Text, nullable=False),
    Column("night", Date, nullable=False),
    Column("litres_per_hour", Float, nullable=False),
    Column("confidence", Float, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("reported_as", Text, ForeignKey("leaks.leak_key"), nullable=False),
    now_column("detected_at"),
    # When Kafka had acknowledged the event; null: still to be produced.
    Column("produced_at", Timestamp),
    CheckConstraint("litres_per_hour > 0", name="litres"),
    CheckConstraint("confidence between 0 and 1", name="confidence"),
    Index("ix_leaks_district_night", "district_id", "night"),
    Index(
        "ix_leaks_unproduced",
        "detected_at",
        postgresql_where=text("reported_as = leak_key and produced_at is null"),
    ),
)
