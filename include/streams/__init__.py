"""The library: consumers of Kafka topics and of landed topics, for Airflow. It contains no topic of a project.

The names below are its public API. All other names are internal and may change in any release. A name is imported when
it is first used, so that a Dag file imports only what it uses.

Declare       Topic, PlainObjects, Contract, Registry; Consumer, Shape, LandingConsumer; Package, Project, KeyedAsset,
              Demo; Repairs, RetentionRule, KindWithRunbook. For topics that somebody else defines: ForeignContract,
              ForeignPart, At, FromHeader, ContractUnion. For topics with a schema registry: Avro, Protobuf, JsonSchema.
              Personal marks fields with data of persons
An effect     Message, Rejected, outbox; `metadata` for its tables; `begin`, a transaction of the operational database
Start a Dag   lag_watcher, LandedOffsetsSensor; joined, joined_by_key, joined_or_at; OUTBOX_DUE
In its tasks  claim_messages and handle_chunk; claim_partition_keys and handle_message; landing_tasks; message_of,
              partition_key, can_take_keys, has_queued_runs; task_defaults, RETRIES and REPORTED for `default_args`
Outcomes      Reason, ContractViolation, NotWanted, RegistryUnavailable

Some packages have no stable API yet, although the example uses them: the lake (`lake/`), checks of sets
(`validators/`), models (`models/`), agents (`inference/`) and pages (`pages/`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from include.streams.contracts import (
        At,
        Contract,
        ContractUnion,
        ContractViolation,
        ForeignContract,
        ForeignPart,
        FromHeader,
        NotWanted,
        PlainObjects,
        Reason,
        Registry,
        Topic,
    )
    from include.streams.contracts.personal import Personal
    from include.streams.contracts.repairs import Repairs
    from include.streams.formats import Avro, JsonSchema, Protobuf, RegistryUnavailable
    from include.streams.kafka.assets import OUTBOX_DUE
    from include.streams.kafka.consumers import RETRIES, Consumer, Shape
    from include.streams.kafka.context import can_take_keys, has_queued_runs, message_of, partition_key
    from include.streams.kafka.messages import Message, Rejected
    from include.streams.kafka.schedules import joined, joined_by_key, joined_or_at
    from include.streams.kafka.tasks import claim_messages, claim_partition_keys, handle_chunk, handle_message
    from include.streams.kafka.trigger import lag_watcher
    from include.streams.landing import tasks as landing_tasks
    from include.streams.landing.consumers import LandingConsumer
    from include.streams.landing.sensor import LandedOffsetsSensor
    from include.streams.operations import outbox
    from include.streams.operations.alarm_kinds import KindWithRunbook
    from include.streams.operations.database import begin
    from include.streams.operations.heartbeats import REPORTED
    from include.streams.operations.retention import Rule as RetentionRule
    from include.streams.operations.tables import metadata
    from include.streams.operations.task_defaults import task_defaults
    from include.streams.packages import Demo, KeyedAsset, Package, Project

__version__ = "0.1.0"
__all__ = [
    "OUTBOX_DUE",
    "REPORTED",
    "RETRIES",
    "At",
    "Avro",
    "Consumer",
    "Contract",
    "ContractUnion",
    "ContractViolation",
    "Demo",
    "ForeignContract",
    "ForeignPart",
    "FromHeader",
    "JsonSchema",
    "KeyedAsset",
    "KindWithRunbook",
    "LandedOffsetsSensor",
    "LandingConsumer",
    "Message",
    "NotWanted",
    "Package",
    "Personal",
    "PlainObjects",
    "Project",
    "Protobuf",
    "Reason",
    "Registry",
    "RegistryUnavailable",
    "Rejected",
    "Repairs",
    "RetentionRule",
    "Shape",
    "Topic",
    "begin",
    "can_take_keys",
    "claim_messages",
    "claim_partition_keys",
    "handle_chunk",
    "handle_message",
    "has_queued_runs",
    "joined",
    "joined_by_key",
    "joined_or_at",
    "lag_watcher",
    "landing_tasks",
    "message_of",
    "metadata",
    "outbox",
    "partition_key",
    "task_defaults",
]

# Where each name is defined; a module has no name after the colon.
_DEFINED_IN = {
    "OUTBOX_DUE": "kafka.assets:OUTBOX_DUE",
    "REPORTED": "operations.heartbeats:REPORTED",
    "RETRIES": "kafka.consumers:RETRIES",
    "At": "contracts:At",
    "Avro": "formats:Avro",
    "Consumer": "kafka.consumers:Consumer",
    "Contract": "contracts:Contract",
    "ContractUnion": "contracts:ContractUnion",
    "ContractViolation": "contracts:ContractViolation",
    "Demo": "packages:Demo",
    "ForeignContract": "contracts:ForeignContract",
    "ForeignPart": "contracts:ForeignPart",
    "FromHeader": "contracts:FromHeader",
    "JsonSchema": "formats:JsonSchema",
    "KeyedAsset": "packages:KeyedAsset",
    "KindWithRunbook": "operations.alarm_kinds:KindWithRunbook",
    "LandedOffsetsSensor": "landing.sensor:LandedOffsetsSensor",
    "LandingConsumer": "landing.consumers:LandingConsumer",
    "Message": "kafka.messages:Message",
    "NotWanted": "contracts:NotWanted",
    "Package": "packages:Package",
    "Personal": "contracts.personal:Personal",
    "PlainObjects": "contracts:PlainObjects",
    "Project": "packages:Project",
    "Protobuf": "formats:Protobuf",
    "Reason": "contracts:Reason",
    "Registry": "contracts:Registry",
    "RegistryUnavailable": "formats:RegistryUnavailable",
    "Rejected": "kafka.messages:Rejected",
    "Repairs": "contracts.repairs:Repairs",
    "RetentionRule": "operations.retention:Rule",
    "Shape": "kafka.consumers:Shape",
    "Topic": "contracts:Topic",
    "begin": "operations.database:begin",
    "can_take_keys": "kafka.context:can_take_keys",
    "claim_messages": "kafka.tasks:claim_messages",
    "claim_partition_keys": "kafka.tasks:claim_partition_keys",
    "handle_chunk": "kafka.tasks:handle_chunk",
    "handle_message": "kafka.tasks:handle_message",
    "has_queued_runs": "kafka.context:has_queued_runs",
    "joined": "kafka.schedules:joined",
    "joined_by_key": "kafka.schedules:joined_by_key",
    "joined_or_at": "kafka.schedules:joined_or_at",
    "lag_watcher": "kafka.trigger:lag_watcher",
    "landing_tasks": "landing.tasks:",
    "message_of": "kafka.context:message_of",
    "metadata": "operations.tables:metadata",
    "outbox": "operations.outbox:",
    "partition_key": "kafka.context:partition_key",
    "task_defaults": "operations.task_defaults:task_defaults",
}


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _DEFINED_IN[name].partition(":")
    imported = import_module(f"{__name__}.{module}")
    # Not cached here: if a test replaces the name in its module, imports from here must get the replacement.
    return getattr(imported, attribute) if attribute else imported


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
