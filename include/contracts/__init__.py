"""What the messages of a topic are: one strict model per topic, from which everything else is derived."""

from include.contracts.model import Contract
from include.contracts.topics import Registry, Topic
from include.contracts.violations import ContractViolation, Reason

__all__ = ["Contract", "ContractViolation", "Reason", "Registry", "Topic"]
