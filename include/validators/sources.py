"""Alarms about single sources of rows (a device, a shop) that break a rule: one per source, without stopping the run.

An alarm closes when a later run has rows of its source and the source does not break the rule. Killed between the
result and the alarms: the retry opens the same alarms.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from include.operations.database import begin

if TYPE_CHECKING:
    from include.validators.evaluation import Offences
    from include.validators.rules import SetSuite, SourceRule

log = logging.getLogger(__name__)

# Open alarms per rule. Without a limit, a faulty firmware could open an alarm for each of a hundred thousand meters.
MAX_ALARMS = 20
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
    from include.operations.alarms import open_alarms

    if not suite.sources:
        return {}
    kinds = [alarm.kind for alarm in open_alarms() if alarm.source == consumer]
    return {
        rule.kind: [kind.removeprefix(_kind(rule, "")) for kind in kinds if _is_of(rule, kind)]
        for rule in suite.sources
    }


def note(consumer: str, found: Iterable[Offences], page: str) -> None:
    """Open an alarm for each source that breaks a rule, and close the alarms of sources that no longer break it.

    Args:
        consumer: The source of the alarms.
        found: The offences of a run, one object for each rule.
        page: The address of the run's page, which the alarms name.
    """
    from include.operations.alarms import close_alarm, open_alarm, open_alarms

    found = list(found)
    if not any(offences.count or offences.cured for offences in found):
        return
    already = [alarm.kind for alarm in open_alarms() if alarm.source == consumer]
    with begin() as connection:
        for offences in found:
            rule = offences.rule
            for source in offences.cured:
                close_alarm(connection, consumer, _kind(rule, source))
            opened = {kind for kind in already if _is_of(rule, kind)} - {_kind(rule, s) for s in offences.cured}
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
