"""Contracts: one strict model for the messages of each topic, from which schemas and checks are derived."""

from include.streams.contracts.foreign import At, ContractUnion, ForeignContract, ForeignPart, FromHeader, NotWanted
from include.streams.contracts.model import Contract
from include.streams.contracts.objects import PlainObjects
from include.streams.contracts.topics import Registry, Topic
from include.streams.contracts.violations import ContractViolation, Reason

__all__ = [
    "At",
    "Contract",
    "ContractUnion",
    "ContractViolation",
    "ForeignContract",
    "ForeignPart",
    "FromHeader",
    "NotWanted",
    "PlainObjects",
    "Reason",
    "Registry",
    "Topic",
]
