"""The base class of every contract."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError


class Contract(BaseModel):
    """The base class of a contract: the exact set of fields in the messages of one topic.

    A subclass declares `version: Literal[n]` without a default, because a message must state its version. It derives
    `event_id` from its own fields: a producer that sends the same event twice sends the same id, and each consumer's
    inbox skips the second message.

    Attributes:
        event_id_sql: `event_id` as an SQL expression of DuckDB over the fields (and `utc_text(time)`), to validate
            millions of messages at once. Without it, messages are parsed one by one. Each task compares the expression
            with the property on a sample.
        contract_name: The contract's name in the consumers' inboxes, which identify an event by this name and by
            `event_id`; by default, the name of the class. If you rename the class, declare its former name here.
            Otherwise no inbox finds the events that were handled, and a repeated event has a second effect.
    """

    # strict: "21.5" is not a number. extra: a misspelled field is an error, not silently ignored. hide_input: a
    # ValidationError in a log must not show a customer's data.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    event_id_sql: ClassVar[str | None] = None
    contract_name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Never inherited: if two contracts had one name, an event of one would count as a repeated event of the other.
        if "contract_name" not in vars(cls):
            cls.contract_name = cls.__name__

    @property
    def event_id(self) -> str:
        """The event's identity within its topic: the same for every copy of the event, so it must not be random."""
        raise NotImplementedError(f"{type(self).__name__} must derive event_id from its fields")

    @field_validator("version", mode="before", check_fields=False)
    @classmethod
    def _version_is_an_integer(cls, value: Any) -> Any:
        if type(value) is not int:  # Literal[1] accepts True and 1.0, which other readers of the topic reject
            raise PydanticCustomError("not_an_integer", "not an integer")
        return value
