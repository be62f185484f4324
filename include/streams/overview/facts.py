"""The data of an overview, as plain dictionaries that can be written as JSON. None means that a value is not known."""

from typing import TypedDict


class ConsumedTopic(TypedDict):
    """A topic of a consumer.

    Attributes:
        topic: The topic's name.
        lag: Messages that no run has claimed.
        age_seconds: How long the oldest of them has waited; None also if there are none.
        handled: Handled messages since `Overview.since`; None in the standard lane, where tables are counted.
        duplicates: Messages since then whose event was handled before; None in the standard lane.
        dead_letters: Messages since then that became dead letters.
        not_wanted: Messages since then of types that no contract of the topic takes; None in the standard lane.
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
        oldest_claim_seconds: The age of the oldest open claim; None also if none is open.
        unhandled: Messages in open claims that are not handled.
        failing: Ranges whose effects keep failing, which the Dag `maintain` retries.
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
    """A landed topic.

    Attributes:
        topic: The topic's name.
        rows: Rows of the landing table.
        clean_rows: Rows of the clean table; None also if there is no such table.
        not_landed: Records that the sink has not read yet.
        missing: Offsets that are recorded as missing in the landing table.
        committed_seconds: The age of the landing table's last commit; None also if there is none.
        connector: The state of the connector and of its tasks.
        cause: Why the connector failed; empty if it did not fail.
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
    """A service that could not be queried, and why. Values from this service are None."""

    service: str
    text: str


class Overview(TypedDict):
    """The state of a project at one moment.

    Attributes:
        at: The time of the queries, in ISO 8601.
        since: The time from which messages and ended runs are counted, in ISO 8601.
        consumers: The consumers of both lanes.
        landed: The landed topics.
        dags: {Dag: {state: runs}}: runs that are queued or running, and those since `since`.
        alarms: The open alarms, oldest first.
        problems: The services that could not be queried.
    """

    at: str
    since: str
    consumers: list[ConsumerFacts]
    landed: list[LandedTopic]
    dags: dict[str, dict[str, int]] | None
    alarms: list[AlarmFacts] | None
    problems: list[Problem]
