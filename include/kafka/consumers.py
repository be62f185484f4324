"""What a consumer is: declared once, used by its Dag, its watcher and the commands."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from include.contracts import Topic
from include.kafka.connection import CONN_ID

if TYPE_CHECKING:
    from include.kafka.messages import Message

# For tasks that claim and handle: 5 s, doubling to 30 min, for a little over six hours. A broker or a database that is
# away for a night shift delays work and fails no run.
RETRIES: dict[str, Any] = {
    "retries": 20,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": 2,
    "max_retry_delay": timedelta(minutes=30),
}

# Airflow's default for [core] max_map_length: a claim that maps to more tasks fails its run.
MAX_MAP_LENGTH = 1024


class Shape(StrEnum):
    """How claimed messages become work."""

    # A claim, then a task mapped over chunks of it: hundreds of messages a second, in offset order within a chunk.
    chunked = "chunked"
    # A claim, then one Dag run for each message: a few a second, in no order.
    per_message = "one run per message"


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """A consumer of one or more topics.

    `name` is its identity in the operational database and its consumer group in Kafka; renaming it starts from the
    beginning of the topics. `effect` is "package.module:function", called as `effect(connection, message)` once for
    each event, in the transaction that records it (a name, so that declaring a consumer imports nothing heavy).
    `prepare`, another name, is for what is slow (a model, a service that is asked): called as `prepare(message)` before
    the transaction, because a transaction that waits holds its locks; `effect(connection, message, prepared)` then gets
    what it returned. A crash between the two calls `prepare` again, so it must change nothing.

    Raises ValueError when the numbers do not fit together.
    """

    name: str
    topics: tuple[Topic, ...]
    effect: str
    prepare: str | None = None
    shape: Shape = Shape.chunked
    # A claim is what one run owns and what one retry repeats.
    max_messages_per_claim: int = 5_000
    # Messages a task handles.
    chunk_size: int = 500
    # Steady traffic is gathered into at most one run in this time.
    min_seconds_between_runs: float = 0.5
    # Beyond these the lane is too slow for its topic, and an alarm says so.
    max_lag: int = 50_000
    max_age: timedelta = timedelta(minutes=15)
    # An open claim this old has a run that failed, or is being retried for too long.
    max_claim_age: timedelta = timedelta(minutes=30)
    # A transaction that holds up its partition for this long will not end by itself: producers allow a minute by
    # default, and brokers 15 at most.
    max_transaction_age: timedelta = timedelta(minutes=5)
    # One run per message: keys without a result for this long are emitted again, then after twice the time, and so on.
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

    @property
    def group(self) -> str:
        """The consumer group that holds the committed offsets."""
        return self.name

    def topic(self, name: str) -> Topic:
        """The declared topic of that name."""
        return next(topic for topic in self.topics if topic.name == name)

    def load_effect(self) -> "Callable[..., Any]":
        """The effect's function; call it in a task, not in a Dag file."""
        return resolve_name(self.effect)

    def load_prepare(self) -> "Callable[[Message], Any] | None":
        """The function that prepares an effect, if there is one."""
        return resolve_name(self.prepare) if self.prepare else None
