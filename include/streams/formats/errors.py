"""What can go wrong between bytes, schema and registry. Only `NotDecodable` makes a dead letter."""

from __future__ import annotations

from typing import Literal

# The values of the members of `contracts.Reason` that concern formats.
FormatReason = Literal["no_schema_id", "unknown_schema", "foreign_schema", "not_decodable"]


class NotDecodable(Exception):
    """The bytes of a message have no JSON text: the message becomes a dead letter.

    Attributes:
        reason: The value of a `contracts.Reason`.
        detail: A text that is safe to log: ids, names of schemas and fields, sizes; no values.
    """

    def __init__(self, reason: FormatReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: FormatReason = reason
        self.detail = detail

    def __reduce__(self):
        return type(self), (self.reason, self.detail)


class NotEncodable(Exception):
    """A JSON document does not fit the schema; the text names the field, not its value."""


class RegistryUnavailable(Exception):
    """The schema registry gave no definite answer. It says nothing about any message: the task is retried.

    Also if the connection is missing or refused: the messages wait until it is corrected.
    """


class SchemaRefused(Exception):
    """The registry refuses a schema, or does not have it; the text names the subject and the rule, and what to do."""


class NotDerivable(ValueError):
    """A contract has a field that the format cannot express; the text names the field and what to do."""
