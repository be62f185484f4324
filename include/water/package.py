"""The declaration of the example; `include/project.py` lists it."""

from include.streams import KeyedAsset, Package
from include.water.alarm_kinds import WaterAlarmKind
from include.water.consumers import CONSUMERS, LANDING_CONSUMERS, TRIAGE_SERVICE_REQUESTS
from include.water.demo import DEMO
from include.water.flows.tables import TABLES
from include.water.topics import TOPICS
from include.water.usage.tables import CUSTOMER_DAYS

WATER = Package(
    name="water",
    topics=TOPICS,
    assets="include.water.assets",
    consumers=CONSUMERS,
    landing_consumers=LANDING_CONSUMERS,
    keyed_assets=(
        KeyedAsset(
            asset="include.water.assets:SERVICE_REQUEST",
            dag_id="triage_service_request",
            keys=TRIAGE_SERVICE_REQUESTS,
        ),
        KeyedAsset(
            asset="include.water.assets:PROPOSAL",
            dag_id="execute_decisions",
            keys="include.water.triage.effect:proposals_to_emit_again",
        ),
    ),
    tables=(*TABLES, CUSTOMER_DAYS),
    repairs="include.water.repairs:REPAIRS",
    alarm_kinds=WaterAlarmKind,
    retention="include.water.retention:rules",
    nightly=("include.water.retention:remove_register_files",),
    demo=DEMO,
)
