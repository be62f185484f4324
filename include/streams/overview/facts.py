"""The data of an overview: plain dictionaries that JSON can hold. None stands for a number that is not known."""

from typing import TypedDict


class ConsumedTopic(TypedDict):
    """A topic of a consumer.

    Attributes:
        topic: The topic's name.
        lag: Messages that no run has claimed.
        age_seconds: How long the oldest of them has waited; None also when none waits.
        handled: Messages with this outcome since `Overview.since`; None in the standard lane, which counts tables.
        duplicates: The same for messages whose event was handled before.
        dead_letters: The same for messages that became dead letters.
        not_wanted: The same for messages of types that no contract of the topic takes; None in the standard lane.
    """

    topic: str
    lag: int | None
    age_seconds: float | None
    handled: int | None
    duplicates: int | None
    dead_letters: int | None
    not_wanted: int | None


class ConsumerFacts(TypedDict):
    """A consumer.

    Attributes:
        name: Its name.
        lane: "event" or "standard".
        topics: Its topics.
        dead_letters: {reason: dead letters since `Overview.since`}.
        open_claims: Claims with messages that are not handled.
        oldest_claim_seconds: The age of the oldest open claim; None also when none is open.
        unhandled: Messages in open claims that are not handled.
        failing: Ranges whose effects keep failing: the Dag `maintain` tries them again.
    """

    name: str
    lane: str
    topics: list[ConsumedTopic]
    dead_letters: dict[str, int] | None
    open_claims: int | None
    oldest_claim_seconds: float | None
    unhandled: int | None
    failing: int | None


class LandedTopic(TypedDict):
    """A topic that lands.

    Attributes:
        topic: The topic's name.
        rows: Rows of the landing table.
        clean_rows: Rows of the table of validated rows; None also when there is no such table.
        not_landed: Records that the sink has not read yet.
        missing: Offsets that are recorded as missing in the landing table.
        committed_seconds: The age of the landing table's last commit; None also when there is none.
        connector: The state of the connector and of its tasks.
        cause: Why the connector failed; empty when it did not.
    """

    topic: str
    rows: int | None
    clean_rows: int | None
    not_landed: int | None
    missing: int | None
    committed_seconds: float | None
    connector: str | None
    cause: str


class AlarmFacts(TypedDict):
    """An open alarm: its source, kind and key, its text, its age, and the page that says what to do."""

    source: str
    kind: str
    key: str
    message: str
    open_seconds: float
    runbook: str


class Problem(TypedDict):
    """A service that could not be asked, and why; what it knows is None elsewhere."""

    service: str
    text: str


class Overview(TypedDict):
    """The state of a project at one moment.

    Attributes:
        at: When it was asked, in ISO 8601.
        since: From when on messages and ended runs are counted, in ISO 8601.
        consumers: The consumers of both lanes.
        landed: The topics that land.
        dags: {Dag: {state: runs}}: runs that are queued or running, and those since `since`.
        alarms: The open alarms, oldest first.
        problems: What could not be asked.
    """

    at: str
    since: str
    consumers: list[ConsumerFacts]
    landed: list[LandedTopic]
    dags: dict[str, dict[str, int]] | None
    alarms: list[AlarmFacts] | None
    problems: list[Problem]
