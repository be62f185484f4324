"""Contracts: one strict model for the messages of each topic, from which schemas and checks are derived."""

from include.streams.contracts.model import Contract
from include.streams.contracts.topics import Registry, Topic
from include.streams.contracts.violations import ContractViolation, Reason

__all__ = ["Contract", "ContractViolation", "Reason", "Registry", "Topic"]
