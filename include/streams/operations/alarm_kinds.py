"""The kinds of alarms, each with the page that says what to do.

A package declares its own kinds in an enum derived from `KindWithRunbook`, which its `Package` names.
"""

import re
from enum import StrEnum
from typing import Self

FOLDER = "docs/runbooks/"
INDEX = f"{FOLDER}README.md"
_PAGE = re.compile(rf"{FOLDER}[\w-]+\.md(?:#[\w-]+)?")


class KindWithRunbook(StrEnum):
    """The base of the enums of kinds: a member is (the kind's name in the table, a page in docs/runbooks/).

    A name consists of letters, digits and `_`.

    Attributes:
        runbook: The page's path in the project, with its section if the member names one.
    """

    runbook: str

    def __new__(cls, value: str, page: str) -> Self:
        kind = str.__new__(cls, value)
        kind._value_ = value
        kind.runbook = f"{FOLDER}{page}"
        return kind

    def with_runbook(self, message: str) -> str:
        """Add the kind's page to a text.

        Args:
            message: The text for people.

        Returns:
            The text with the page at its end; unchanged if it already names a page.
        """
        return message if _PAGE.search(message) else f"{message} ({self.runbook})"


class AlarmKind(KindWithRunbook):
    """The kinds of the library.

    The source of an alarm is a consumer, landing table, connector, dead-letter topic, Dag or task. The key is given
    where there is one.
    """

    # A consumer is too slow for its topics, or has no runs.
    age = "age", "lag-grows.md"
    lag = "lag", "lag-grows.md"
    claim_open = "claim_open", "a-run-failed.md"
    effect_fails = "effect_fails", "a-run-failed.md#the-effect-cannot-work"
    messages_lost = "messages_lost", "messages-lost.md"
    # Key: the topic.
    consumer_stopped = "consumer_stopped", "topic-recreated.md"
    topic_forbidden = "topic_forbidden", "broker-away.md"
    many_dead_letters = "many_dead_letters", "dead-letters.md"
    partitions_away = "partitions_away", "broker-away.md"
    commit_refused = "commit_refused", "committed-offsets.md"
    foreign_commits = "foreign_commits", "committed-offsets.md"
    transaction_open = "transaction_open", "transaction-open.md"
    conflicting_events = "conflicting_events", "dead-letters.md#alarms"
    dead_letters_wait = "dead_letters_wait", "dead-letters.md#alarms"
    outbox_failed = "outbox_failed", "outbox-failed.md"
    outbox_pending = "outbox_pending", "outbox-failed.md"
    # Key of `dag_failed`: the partition key, the map index, or both.
    dag_failed = "dag_failed", "a-dag-is-silent.md"
    dag_silent = "dag_silent", "a-dag-is-silent.md"
    landing_gap = "landing_gap", "landing-gap.md"
    run_does_not_balance = "run_does_not_balance", "replay-a-run.md#a-run-does-not-balance"
    # Key: the claim's number.
    suite_failed = "suite_failed", "suite-failed.md"
    connect_unreachable = "connect_unreachable", "connector-failed.md"
    connector_failed = "connector_failed", "connector-failed.md"
    connector_given_up = "connector_given_up", "connector-failed.md"
    connector_missing = "connector_missing", "connector-failed.md"
    landing_stalled = "landing_stalled", "connector-failed.md"
    sink_lag = "sink_lag", "connector-failed.md"
    sink_stalled = "sink_stalled", "connector-failed.md"
    # A connector that is stopped for a moment, and the records that it was moved past.
    stepping_over = "stepping_over", "connector-failed.md"
    records_stepped_over = "records_stepped_over", "connector-failed.md"


def runbook_of(kind: str, message: str = "") -> str:
    """The page for an alarm.

    Args:
        kind: The alarm's kind.
        message: The alarm's text. It names the page, unless the previous release wrote it.

    Returns:
        The page's path in the project; the index of the runbooks if none is known.
    """
    if named := _PAGE.search(message):
        return named[0]
    known = AlarmKind.__members__.get(kind)
    return known.runbook if known else INDEX
