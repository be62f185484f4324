"""Alarms about single sources of rows (a device, a shop) that break a rule: one alarm per source. The run continues.

An alarm closes when a later run has rows of its source and the source does not break the rule. A source that was
replaced never sends again, so its alarm closes after MAX_AGE, with a note that says so. If the process is killed
between the result and the alarms, the retry opens the same alarms.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from include.streams.operations.database import begin

if TYPE_CHECKING:
    from include.streams.validators.evaluation import Offences
    from include.streams.validators.rules import SetSuite

log = logging.getLogger(__name__)

# Open alarms per rule. Without a limit, a faulty firmware could open an alarm for each of a hundred thousand devices.
MAX_ALARMS = 20
# Without this limit, MAX_ALARMS replaced devices would prevent every further alarm of the rule. If such a source breaks
# the rule again, a new alarm opens.
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
    from include.streams.operations.alarms import open_keys

    if not suite.sources:
        return {}
    with begin() as connection:
        return {rule.kind: list(open_keys(connection, consumer, rule.kind)) for rule in suite.sources}


def update_alarms(consumer: str, all_offences: Iterable[Offences], page: str) -> None:
    """Open an alarm for each source that breaks a rule, and close the alarms of sources that no longer break it.

    An alarm that is older than MAX_AGE stays open only if its source breaks the rule in this run.

    Args:
        consumer: The source of the alarms.
        all_offences: The offences of a run, one object for each rule.
        page: The address of the run's page, which the alarms name.
    """
    from include.streams.operations.alarms import close_alarm, open_alarm, open_keys

    all_offences = list(all_offences)
    if not all_offences:
        return
    before = datetime.now(UTC) - MAX_AGE
    with begin() as connection:
        for offences in all_offences:
            rule = offences.rule
            opened_at = open_keys(connection, consumer, rule.kind)
            for source in offences.cured:
                close_alarm(connection, consumer, rule.kind, key=source)
            open_sources = opened_at.keys() - offences.cured
            for source in open_sources - set(offences.again):
                if opened_at[source] < before:
                    close_alarm(connection, consumer, rule.kind, f"{_FORGOTTEN}. Page: {page}", key=source)
                    open_sources.remove(source)
            for source, number in offences.worst:
                name = source[:MAX_NAME_CHARACTERS]
                if name in open_sources or len(open_sources) < MAX_ALARMS:
                    open_sources.add(name)
                    text = f"{name}: {number:,.6g} {rule.unit}; expected: {rule.expected}"
                    text += f". Its rows are processed. To do: {rule.remedy}. Page: {page}"
                    open_alarm(connection, consumer, rule.kind, text, key=name)
            if offences.count:
                log.warning("%s: %d %s; expected: %s", consumer, offences.count, rule.title, rule.expected)
