"""The declaration of a consumer: written once, used by its Dag, its watcher and the commands."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from inspect import signature
from itertools import chain
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from include.streams.contracts import Topic
from include.streams.kafka.connection import CONN_ID

if TYPE_CHECKING:
    from include.streams.kafka.messages import Message

# Errors that a retry does not change, because the code is wrong. Still, one odd message can also cause such an error.
PROGRAMMING_ERRORS = (TypeError, AttributeError, NameError, ImportError, SyntaxError)

# For tasks that claim and handle: delays of 5 s, doubling to 30 min, a little over six hours in total. An outage of the
# broker or the database of that length delays the work but fails no run.
RETRIES: dict[str, Any] = {
    "retries": 20,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": 2,
    "max_retry_delay": timedelta(minutes=30),
}

# Airflow's default for [core] max_map_length. A claim that maps to more tasks fails its run.
MAX_MAP_LENGTH = 1024


class FunctionUnusable(Exception):
    """A function that a declaration names does not exist or cannot be called; the text says what to correct."""


def load_function(name: str, what: str, *arguments: str) -> "Callable[..., Any]":
    """Import a function that a declaration names.

    Args:
        name: "package.module:function".
        what: The function's owner and role, for the error text: "consumer book: its effect".
        arguments: The names of the arguments with which it is called.

    Returns:
        The function.

    Raises:
        FunctionUnusable: There is no such function, its module cannot be imported, or it takes other arguments.
    """
    try:
        function = resolve_name(name)
    except (*PROGRAMMING_ERRORS, ValueError) as error:
        raise FunctionUnusable(
            f"{what} {name!r} cannot be imported ({type(error).__name__}: {error}); correct the name in the "
            "declaration, or the module"
        ) from error
    if not callable(function):
        raise FunctionUnusable(f"{what} {name!r} is a {type(function).__name__}, and must be a function")
    try:
        parameters = signature(function)
    except ValueError:
        # Some functions that are written in C have no signature.
        return function
    try:
        parameters.bind(*arguments)
    except TypeError:
        raise FunctionUnusable(
            f"{what} {name!r} takes {parameters}, and is called with ({', '.join(arguments)}); correct its parameters"
        ) from None
    return function


class Shape(StrEnum):
    """How claimed messages are distributed to tasks."""

    # One claim, then a task mapped over its chunks: hundreds of messages per second, in offset order within a chunk.
    chunked = "chunked"
    # One claim, then one Dag run per message: a few messages per second, in no order.
    per_message = "one run per message"


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """A consumer of one or more topics.

    `effect` and `prepare` are names ("package.module:function"), so that a declaration imports nothing heavy.

    Attributes:
        name: The consumer's identity in the operational database, and its consumer group in Kafka. A renamed consumer
            starts from the beginning of the topics.
        topics: The topics to read; at least one.
        effect: The function that is called as `effect(connection, message)`, once for each event, in the transaction
            that records the event.
        prepare: The function for slow work, such as a model or a request to a service. It is called as
            `prepare(message)` before the transaction, because an open transaction holds its locks. Its result is passed
            on as `effect(connection, message, prepared)`. After a crash between the two calls, `prepare` is called
            again, so it must have no side effects.
        shape: How claimed messages are distributed to tasks.
        max_messages_per_claim: The most messages that one run owns.
        chunk_size: The most messages that one task handles.
        min_seconds_between_runs: The least time between two runs. Messages that arrive in this time share a run.
        max_lag: Above this number of messages that are not claimed, the alarm `lag` opens.
        max_age: When a message waits longer than this, the alarm `age` opens.
        max_claim_age: When a claim is open for longer than this, the alarm `claim_open` opens.
        max_transaction_age: When a transaction blocks a partition for longer than this, the alarm `transaction_open`
            opens.
        emit_again_after: One run per message: after this time without a result, the key of a message is emitted again.
        conn_id: The Airflow connection of the broker.

    Raises:
        ValueError: `topics` is empty, a claim is smaller than a chunk or a chunk smaller than one message, a claim has
            more chunks than Airflow maps tasks, or two topics have different contracts of one name.
    """

    name: str
    topics: tuple[Topic, ...]
    effect: str
    prepare: str | None = None
    shape: Shape = Shape.chunked
    max_messages_per_claim: int = 10_000
    # Beside its messages, a task takes about a second of CPU time: with chunks of 500, half of the work of a light
    # effect. Each batch within a chunk has its own transaction.
    chunk_size: int = 1_000
    min_seconds_between_runs: float = 0.5
    # Above these limits the lane is too slow for its topic.
    max_lag: int = 50_000
    max_age: timedelta = timedelta(minutes=15)
    # The run of an open claim of this age has failed, or its retries take too long.
    max_claim_age: timedelta = timedelta(minutes=30)
    # A transaction that blocks its partition for this long will hardly end by itself: by default, a producer's
    # transaction times out after 1 min, and a broker allows 15 min at most.
    max_transaction_age: timedelta = timedelta(minutes=5)
    # The next emissions wait twice as long each time.
    emit_again_after: timedelta = timedelta(minutes=10)
    conn_id: str = CONN_ID

    def __post_init__(self) -> None:
        if not self.topics:
            raise ValueError(f"consumer {self.name}: name at least one topic")
        if self.chunk_size < 1 or self.max_messages_per_claim < self.chunk_size:
            raise ValueError(
                f"consumer {self.name}: chunk_size is {self.chunk_size}, max_messages_per_claim is "
                f"{self.max_messages_per_claim}; a claim holds at least one chunk of at least one message"
            )
        if self.max_messages_per_claim // self.chunk_size >= MAX_MAP_LENGTH:
            raise ValueError(
                f"consumer {self.name}: {self.max_messages_per_claim} messages in chunks of {self.chunk_size} are more "
                f"than the {MAX_MAP_LENGTH} mapped tasks that Airflow allows a run; raise chunk_size"
            )
        contracts: dict[str, type] = {}
        for contract in chain.from_iterable(topic.contracts for topic in self.topics):
            if contracts.setdefault(name := contract.contract_name, contract) is not contract:
                raise ValueError(
                    f"consumer {self.name}: the contracts of two topics are both named {name}, so an event of one "
                    "would be taken for a repeated event of the other; declare another `contract_name` in one of them"
                )

    @property
    def group(self) -> str:
        """The Kafka consumer group of the committed offsets."""
        return self.name

    def topic(self, name: str) -> Topic:
        """The declared topic of this name.

        Args:
            name: The topic's name in Kafka.

        Returns:
            The topic.

        Raises:
            StopIteration: The consumer does not read this topic.
        """
        return next(topic for topic in self.topics if topic.name == name)

    def load_effect(self) -> "Callable[..., Any]":
        """Import the effect's function. Call this in a task, not in a Dag file.

        Returns:
            The function. It is called as `effect(connection, message)`, or with a third argument if `prepare` is set.

        Raises:
            FunctionUnusable: The function does not exist or takes other arguments.
        """
        arguments = ("connection", "message", *(("prepared",) if self.prepare else ()))
        return load_function(self.effect, f"consumer {self.name}: its effect", *arguments)

    def load_prepare(self) -> "Callable[[Message], Any] | None":
        """Import the function that prepares an effect. Call this in a task, not in a Dag file.

        Returns:
            The function, which is called as `prepare(message)`; None if the consumer has none.

        Raises:
            FunctionUnusable: The function does not exist or takes other arguments.
        """
        what = f"consumer {self.name}: its function for preparing"
        return load_function(self.prepare, what, "message") if self.prepare else None
