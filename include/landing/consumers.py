"""What a consumer of a landing table is: declared once, used by its Dag, its sensor and the commands."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pkgutil import resolve_name
from typing import Any, Literal

from include.contracts import Topic
from include.kafka.connection import CONN_ID
from include.kafka.consumers import MAX_MAP_LENGTH


@dataclass(frozen=True, kw_only=True)
class LandingConsumer:
    """A consumer of one landed topic.

    `name` is its identity in the operational database and its consumer group in Kafka; renaming it starts from the
    beginning of the landing table. `map_by` says what a mapped task gets: "file" data files, "partition" the files of
    one Kafka partition (a subdirectory of the table). `suite` is "package.module:function", the rules for a run's whole
    set of rows, as a name, so that declaring a consumer imports nothing heavy.

    Raises ValueError when the numbers do not fit together.
    """

    name: str
    topic: Topic
    map_by: Literal["file", "partition"] = "file"
    # A claim is what one run owns and what one retry repeats.
    max_messages_per_claim: int = 2_000_000
    suite: str | None = None
    # A task costs some two seconds before its first row, and one for so many: the sink's many small files share one.
    # With 1, every file is a task of its own.
    min_messages_per_unit: int = 500_000
    # More files than this are bundled evenly by rows. Airflow's limit is [core] max_map_length.
    max_units: int = 256
    # The sink commits its offsets before the table: what has not landed by then, alarms.
    landing_grace: timedelta = timedelta(minutes=5)
    # Beyond this many landed messages that nobody has claimed, an alarm says so.
    max_lag: int = 20_000_000
    # An open claim this old has a run that failed, or is being retried for too long.
    max_claim_age: timedelta = timedelta(hours=1)
    conn_id: str = CONN_ID

    def __post_init__(self) -> None:
        if not self.topic.landed:
            raise ValueError(f"consumer {self.name}: topic {self.topic.name} has no landing table: declare landed=True")
        if self.map_by not in ("file", "partition"):
            raise ValueError(f"consumer {self.name}: map_by is {self.map_by!r}; it is 'file' or 'partition'")
        if not 1 <= self.max_units < MAX_MAP_LENGTH:
            raise ValueError(
                f"consumer {self.name}: max_units is {self.max_units}; 1 to {MAX_MAP_LENGTH - 1}, because Airflow "
                f"fails a run that maps to more than {MAX_MAP_LENGTH} tasks"
            )
        if self.max_messages_per_claim < 1 or self.min_messages_per_unit < 1:
            raise ValueError(
                f"consumer {self.name}: max_messages_per_claim is {self.max_messages_per_claim}, min_messages_per_unit "
                f"is {self.min_messages_per_unit}; at least 1"
            )

    @property
    def group(self) -> str:
        """The consumer group that shows in Kafka what has been claimed."""
        return self.name

    def load_suite(self) -> Callable[..., Any] | None:
        """The suite's function, if there is one; call it in a task, not in a Dag file."""
        return resolve_name(self.suite) if self.suite else None
