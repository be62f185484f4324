"""Which runbook says what to do about an alarm."""

import re

FOLDER = "docs/runbooks/"
INDEX = f"{FOLDER}README.md"
_PAGES = {
    "a-dag-is-silent.md": ("dag_failed", "dag_silent"),
    "a-run-failed.md": ("claim_open",),
    "broker-away.md": ("partitions_away", "topic_forbidden"),
    "committed-offsets.md": ("commit_refused", "foreign_commits"),
    "connector-failed.md": (
        "connect_unreachable", "connector_failed", "connector_given_up", "connector_missing", "landing_stalled",
        "records_stepped_over", "sink_lag", "sink_stalled", "stepping_over",
    ),
    "dead-letters.md": ("many_dead_letters",),
    "dead-letters.md#alarms": ("conflicting_events", "dead_letters_wait"),
    "lag-grows.md": ("age", "lag"),
    "landing-gap.md": ("landing_gap",),
    "messages-lost.md": ("messages_lost",),
    "outbox-failed.md": ("outbox_failed", "outbox_pending"),
    "replay-a-run.md": ("run_does_not_balance",),
    "suite-failed.md": ("suite_failed",),
    "topic-recreated.md": ("consumer_stopped",),
    "transaction-open.md": ("transaction_open",),
}  # fmt: skip
PAGE_OF = {kind: page for page, kinds in _PAGES.items() for kind in kinds}


def runbook_of(kind: str, message: str = "") -> str:
    """The page for an alarm.

    Args:
        kind: The alarm's kind; what follows a colon names a part of the source.
        message: The alarm's text, which may name a page. The text of a package's own alarm should.

    Returns:
        The page's path in the project; the index of the runbooks if none is known.
    """
    if page := PAGE_OF.get(kind.partition(":")[0]):
        return FOLDER + page
    named = re.search(rf"{FOLDER}[\w-]+\.md(?:#[\w-]+)?", message)
    return named[0] if named else INDEX
