"""The declaration of a consumer of a landing table, used by its Dag, its sensor and the commands."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pkgutil import resolve_name
from typing import Any, Literal

from include.streams.contracts import Topic
from include.streams.kafka.connection import CONN_ID
from include.streams.kafka.consumers import MAX_MAP_LENGTH
from include.streams.validators.columns import table_columns

# The time between the sink's commit in Kafka and its commit to the table: seconds, but a failed commit is retried for
# minutes.
LANDING_GRACE = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class LandingConsumer:
    """A consumer of one landed topic.

    Attributes:
        name: Its identity in the operational database, and its consumer group in Kafka. After a rename, the consumer
            starts at the beginning of the landing table.
        topic: The landed topic.
        map_by: What a mapped task gets: "file" for data files, "partition" for the files of one Kafka partition (a
            subdirectory of the table).
        max_messages_per_claim: The most messages that one run claims.
        suite: "package.module:function" of a function that returns the rules for the whole set of a run's rows. A name,
            not the function, so that a declaration imports nothing heavy.
        min_messages_per_unit: Files are combined until a task has this many messages.
        max_units: The most mapped tasks of a run.
        landing_grace: How long offsets that the sink has committed may be missing in the table before they are
            repaired, with an alarm.
        max_lag: An alarm opens when more landed messages than this are unclaimed.
        max_age: An alarm opens when landed messages are unclaimed for longer.
        max_claim_age: An alarm opens when a claim is open for longer.
        conn_id: The Airflow connection of Kafka.

    Raises:
        ValueError: The numbers do not fit together, or the topic's contracts cannot have one clean table.
    """

    name: str
    topic: Topic
    map_by: Literal["file", "partition"] = "file"
    max_messages_per_claim: int = 2_000_000
    suite: str | None = None
    # A task takes some two seconds before its first row, so the sink's many small files share a task. With 1, every
    # file is a task of its own.
    min_messages_per_unit: int = 500_000
    # More files than this are distributed evenly by rows. Airflow's limit is [core] max_map_length.
    max_units: int = 256
    landing_grace: timedelta = LANDING_GRACE
    max_lag: int = 20_000_000
    # Twice max_claim_age: what lands during a long claim waits for the end of that claim.
    max_age: timedelta = timedelta(hours=2)
    # The run of an older open claim has failed, or has been retrying for too long.
    max_claim_age: timedelta = timedelta(hours=1)
    conn_id: str = CONN_ID

    def __post_init__(self) -> None:
        if not self.topic.landed:
            raise ValueError(f"consumer {self.name}: topic {self.topic.name} has no landing table: declare landed=True")
        # Raises ValueError here, not in the first run.
        table_columns(self.topic)
        if self.map_by not in ("file", "partition"):
            raise ValueError(f"consumer {self.name}: map_by is {self.map_by!r}; use 'file' or 'partition'")
        if not 1 <= self.max_units < MAX_MAP_LENGTH:
            raise ValueError(
                f"consumer {self.name}: max_units is {self.max_units}; use 1 to {MAX_MAP_LENGTH - 1}, because Airflow "
                f"fails a run that maps to more than {MAX_MAP_LENGTH} tasks"
            )
        if self.max_messages_per_claim < 1 or self.min_messages_per_unit < 1:
            raise ValueError(
                f"consumer {self.name}: max_messages_per_claim is {self.max_messages_per_claim}, min_messages_per_unit "
                f"is {self.min_messages_per_unit}; both must be at least 1"
            )

    @property
    def group(self) -> str:
        """The consumer group whose committed offsets show the claimed offsets in Kafka."""
        return self.name

    def load_suite(self) -> Callable[..., Any] | None:
        """The suite's function, if there is one. Call it in a task, not in a Dag file."""
        return resolve_name(self.suite) if self.suite else None
