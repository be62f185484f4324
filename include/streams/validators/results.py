"""Objects in the bucket from checks of sets: results, pages, measures of earlier runs, and acceptances by people.

    validation/<source>/<key>/result.json      the last check of that run
    validation/<source>/<key>/report.html      the same as a page
    validation/<source>/<key>/acceptance.json  who accepted which broken rules, when and why
    validation/<source>/past.json              measures of the last runs that passed or were accepted

A path consists of names from code and of numbers. It never contains text from a message or a file.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from include.streams.lake.buckets import Bucket, bucket
from include.streams.operations.audit import Refused
from include.streams.validators.report import render

log = logging.getLogger(__name__)

FOLDER = "validation"
RESULT, PAGE, ACCEPTANCE, PAST = "result.json", "report.html", "acceptance.json", "past.json"
# Enough that one unusual run does not move the bounds; few enough that a seasonal change does not stop the lane.
PAST_RUNS = 50
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class NothingToAccept(Refused):
    """The run was not checked, or it has broken no rule."""


@dataclass(frozen=True)
class Acceptance:
    """A person has accepted a run although it breaks these rules.

    Attributes:
        rules: The names of the accepted rules.
        by: Who has accepted it.
        reason: Why.
        at: When, as ISO 8601 text in UTC.
    """

    rules: tuple[str, ...]
    by: str
    reason: str
    at: str


def folder(source: str, key: int | str) -> str:
    """The folder of the objects of one run.

    Args:
        source: The name of the checked source, such as a consumer.
        key: The key of the run, such as the number of its claim.

    Raises:
        ValueError: A part is not a plain name.
    """
    return f"{FOLDER}/{safe_part(source)}/{safe_part(str(key))}"


def safe_part(text: str) -> str:
    """Return the text if it may be a part of a path; raise ValueError otherwise."""
    if not _SAFE.fullmatch(text) or ".." in text:
        raise ValueError(f"{text[:40]!r} cannot be a part of a path: letters, digits, '_', '-' and '.' only")
    return text


def store(place: str, document: Mapping[str, Any], to: Bucket | None = None) -> str:
    """Write a check's result and its page.

    Args:
        place: The folder, from `folder`.
        document: The result, from `sets.document`.
        to: The bucket; None for the default bucket.

    Returns:
        The page's address, a gs:// URL.
    """
    objects = to or bucket()
    # The page first, so that no result exists without its page.
    objects.write(f"{place}/{PAGE}", render(document).encode(), "text/html; charset=utf-8")
    objects.write(f"{place}/{RESULT}", _encode(document), "application/json")
    return f"gs://{objects.name}/{place}/{PAGE}"


def load_result(source: str, key: int | str) -> dict[str, Any] | None:
    """The last result of a run; None when the run was not checked."""
    return _read(bucket(), f"{folder(source, key)}/{RESULT}")


def load_page(source: str, key: int | str) -> str | None:
    """The HTML page of a run's last check; None when the run was not checked."""
    stored = bucket().read(f"{folder(source, key)}/{PAGE}")
    return stored[0].decode() if stored else None


def acceptances(source: str, key: int | str) -> tuple[Acceptance, ...]:
    """The acceptances of a run, oldest first."""
    stored = _read(bucket(), f"{folder(source, key)}/{ACCEPTANCE}") or {}
    return tuple(Acceptance(**{**entry, "rules": tuple(entry["rules"])}) for entry in stored.get("acceptances", ()))


def accept(source: str, key: int | str, *, by: str, reason: str) -> Acceptance:
    """Accept a run although it breaks rules, and close its alarm.

    Only the rules that failed in the run's last check are accepted, not other rules that it breaks later. The
    acceptance stays in the bucket permanently.

    Args:
        source: The name of the checked source, such as a consumer.
        key: The key of the run, such as the number of its claim.
        by: Who accepts.
        reason: Why.

    Raises:
        NothingToAccept: The run was not checked, or has broken no rule.
        ValueError: The name or the reason is empty.
    """
    by, reason = by.strip(), reason.strip()
    if not by or not reason:
        raise ValueError("an acceptance needs the name of the person and the reason")
    result = load_result(source, key)
    if result is None:
        raise NothingToAccept(f"{source}: no suite was checked for {key}; `show` prints the check of a run")
    rules = tuple(outcome["rule"] for outcome in result["outcomes"] if outcome["state"] == "failed")
    if not rules:
        raise NothingToAccept(f"{source}: {key} has broken no rule, so there is nothing to accept")
    accepted = Acceptance(rules, by, reason, datetime.now(UTC).isoformat(timespec="seconds"))

    def add(stored: dict[str, Any] | None) -> dict[str, Any]:
        before = [*(stored or {}).get("acceptances", ())]
        # A task that was killed after this is retried: the same decision is recorded once.
        same = {"rules": [*rules], "by": by, "reason": reason}
        if any(same.items() <= entry.items() for entry in before):
            return {"acceptances": before}
        return {"acceptances": [*before, asdict(accepted)]}

    _update(bucket(), f"{folder(source, key)}/{ACCEPTANCE}", add)
    log.warning("accepted: source=%s key=%s rules=%d by=%s", source, key, len(rules), by)
    close(source, key)
    return accepted


def close(source: str, key: int | str) -> None:
    """Close the alarm of a run that passes or was accepted. Each run has its own alarm, so other alarms stay open."""
    from include.streams.operations.alarm_kinds import AlarmKind
    from include.streams.operations.alarms import close_alarm
    from include.streams.operations.database import begin

    with begin() as connection:
        close_alarm(connection, source, AlarmKind.suite_failed, key=str(key))


def past_measures(source: str, before: int) -> list[Mapping[str, float | None]]:
    """The measures of the last runs before a claim. The claim's own are left out, so its retry has the same result.

    Args:
        source: The name of the checked source, such as a consumer.
        before: The claim's number.
    """
    stored = _read(bucket(), f"{FOLDER}/{safe_part(source)}/{PAST}") or {}
    return [run["measures"] for run in stored.get("runs", ()) if run["claim_id"] < before]


def remember(source: str, claim_id: int, measures: Mapping[str, float | None]) -> None:
    """Store a run's measures for later runs; a repeated run replaces its earlier measures.

    Args:
        source: The name of the checked source, such as a consumer.
        claim_id: The claim's number.
        measures: {name: number}; None for a number that was not measured.
    """

    def put(stored: dict[str, Any] | None) -> dict[str, Any]:
        others = [run for run in (stored or {}).get("runs", ()) if run["claim_id"] != claim_id]
        runs = sorted([*others, {"claim_id": claim_id, "measures": dict(measures)}], key=lambda run: run["claim_id"])
        return {"runs": runs[-PAST_RUNS:]}

    _update(bucket(), f"{FOLDER}/{safe_part(source)}/{PAST}", put)


def not_accepted(failed: Sequence[str], accepted: Sequence[Acceptance]) -> list[str]:
    """The failed rules that nobody has accepted."""
    allowed = {rule for acceptance in accepted for rule in acceptance.rules}
    return [rule for rule in failed if rule not in allowed]


def _update(objects: Bucket, path: str, change: Callable[[dict[str, Any] | None], dict[str, Any]]) -> None:
    objects.update(path, lambda content: _encode(change(_decode(objects, path, content))), "application/json")


def _read(objects: Bucket, path: str) -> dict[str, Any] | None:
    stored = objects.read(path)
    return _decode(objects, path, stored[0] if stored else None)


def _decode(objects: Bucket, path: str, content: bytes | None) -> dict[str, Any] | None:
    if content is None:
        return None
    try:
        return json.loads(content)
    except ValueError as error:
        # Raised, because treating the object as missing would silently lose acceptances and measures.
        raise ValueError(f"gs://{objects.name}/{path} is not JSON: restore an older version, or delete it") from error


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode()
