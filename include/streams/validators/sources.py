"""Alarms about single sources of rows (a device, a shop) that break a rule: one per source, without stopping the run.

An alarm closes when a later run has rows of its source and the source does not break the rule. A source that was
replaced never sends again: after MAX_AGE its alarm closes with a note that says so. Killed between the result and the
alarms: the retry opens the same alarms.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from include.streams.operations.database import begin

if TYPE_CHECKING:
    from include.streams.validators.evaluation import Offences
    from include.streams.validators.rules import SetSuite, SourceRule

log = logging.getLogger(__name__)

# Open alarms per rule. Without a limit, a faulty firmware could open an alarm for each of a hundred thousand devices.
MAX_ALARMS = 20
# Otherwise this many replaced devices would silence the rule for good. If such a source comes back, it is named again.
MAX_AGE = timedelta(weeks=4)
_FORGOTTEN = f"open for more than {MAX_AGE.days // 7} weeks, and this run has no row of the source that breaks the rule"
# Limited, because a source's name comes from a message.
MAX_NAME_CHARACTERS = 80


def known(consumer: str, suite: SetSuite) -> dict[str, list[str]]:
    """The sources with an open alarm.

    Args:
        consumer: The source of the alarms.
        suite: The suite with the rules about sources.

    Returns:
        {kind of a rule: names of sources}.
    """
    from include.streams.operations.alarms import open_alarms

    if not suite.sources:
        return {}
    kinds = [alarm.kind for alarm in open_alarms() if alarm.source == consumer]
    return {
        rule.kind: [kind.removeprefix(_kind(rule, "")) for kind in kinds if _is_of(rule, kind)]
        for rule in suite.sources
    }


def note(consumer: str, found: Iterable[Offences], page: str) -> None:
    """Open an alarm for each source that breaks a rule, and close the alarms of sources that no longer break it.

    An alarm that is older than MAX_AGE stays open only if its source breaks the rule in this run.

    Args:
        consumer: The source of the alarms.
        found: The offences of a run, one object for each rule.
        page: The address of the run's page, which the alarms name.
    """
    from include.streams.operations.alarms import close_alarm, open_alarm, open_alarms

    found = list(found)
    if not found:
        return
    already = {alarm.kind: alarm.opened_at for alarm in open_alarms() if alarm.source == consumer}
    before = datetime.now(UTC) - MAX_AGE
    with begin() as connection:
        for offences in found:
            rule = offences.rule
            cured, again = ({_kind(rule, source) for source in of} for of in (offences.cured, offences.again))
            for kind in cured:
                close_alarm(connection, consumer, kind)
            opened = {kind for kind in already if _is_of(rule, kind)} - cured
            for kind in {kind for kind in opened - again if already[kind] < before}:
                close_alarm(connection, consumer, kind, f"{_FORGOTTEN}. Page: {page}")
                opened.remove(kind)
            for source, number in offences.worst:
                kind = _kind(rule, source[:MAX_NAME_CHARACTERS])
                if kind in opened or len(opened) < MAX_ALARMS:
                    opened.add(kind)
                    text = f"{source[:MAX_NAME_CHARACTERS]}: {number:,.6g} {rule.unit}; expected: {rule.expected}"
                    open_alarm(
                        connection, consumer, kind, f"{text}. Its rows go on. To do: {rule.remedy}. Page: {page}"
                    )
            if offences.count:
                log.warning("%s: %d %s; expected: %s", consumer, offences.count, rule.title, rule.expected)


def _kind(rule: SourceRule, source: str) -> str:
    return f"{rule.kind}:{source}"


def _is_of(rule: SourceRule, kind: str) -> bool:
    return kind.startswith(_kind(rule, ""))
