"""What checks of sets leave in the bucket: results, pages, statistics of earlier runs, and what people accepted.

    validation/<source>/<key>/result.json      the last check of that run
    validation/<source>/<key>/report.html      the same as a page
    validation/<source>/<key>/acceptance.json  who accepted which broken rules, when and why
    validation/<source>/past.json              measures of the last runs that passed or were accepted

A path is made of names from code and of numbers, never of what a message or a file says.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from include.lake.buckets import ABSENT, Bucket, GenerationChanged, bucket
from include.validators.report import render

log = logging.getLogger(__name__)

FOLDER = "validation"
RESULT, PAGE, ACCEPTANCE, PAST = "result.json", "report.html", "acceptance.json", "past.json"
# Enough for bounds that one odd run does not move; few enough that a season's change does not stop the lane.
PAST_RUNS = 50
# Somebody else writes the same object at the same moment; more often than this it is a fault.
MAX_TRIES = 5
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class NothingToAccept(Exception):
    """There is no check of that run, or it has broken no rule."""


@dataclass(frozen=True)
class Acceptance:
    """A person lets a run go on although it breaks these rules."""

    rules: tuple[str, ...]
    by: str
    reason: str
    at: str


def folder(source: str, key: int | str) -> str:
    """Where the objects of one run are. Raises ValueError for a part that is no plain name."""
    return f"{FOLDER}/{safe_part(source)}/{safe_part(str(key))}"


def safe_part(text: str) -> str:
    """The text, if it can be a part of a path. Raises ValueError."""
    if not _SAFE.fullmatch(text) or ".." in text:
        raise ValueError(f"{text[:40]!r} cannot be a part of a path: letters, digits, '_', '-' and '.' only")
    return text


def store(place: str, document: Mapping[str, Any], to: Bucket | None = None) -> str:
    """Write a check's result and its page below `place`; returns the page's address."""
    objects = to or bucket()
    # The page first: a result without its page would name something that is not there.
    objects.write(f"{place}/{PAGE}", render(document).encode(), "text/html; charset=utf-8")
    objects.write(f"{place}/{RESULT}", _encode(document), "application/json")
    return f"gs://{objects.name}/{place}/{PAGE}"


def load_result(source: str, key: int | str) -> dict[str, Any] | None:
    """The last check of a run, None when there is none."""
    return _read(bucket(), f"{folder(source, key)}/{RESULT}")[0]


def load_page(source: str, key: int | str) -> str | None:
    found = bucket().read(f"{folder(source, key)}/{PAGE}")
    return found[0].decode() if found else None


def acceptances(source: str, key: int | str) -> tuple[Acceptance, ...]:
    """What people accepted of a run, oldest first."""
    found = _read(bucket(), f"{folder(source, key)}/{ACCEPTANCE}")[0] or {}
    return tuple(Acceptance(**{**entry, "rules": tuple(entry["rules"])}) for entry in found.get("acceptances", ()))


def accept(source: str, key: int | str, *, by: str, reason: str) -> Acceptance:
    """Let a run go on although it breaks the rules that its last check names; rules it breaks later are not meant.

    Recorded in the bucket for good. Closes the run's alarm. Raises NothingToAccept, and ValueError without a name or a
    reason.
    """
    by, reason = by.strip(), reason.strip()
    if not by or not reason:
        raise ValueError("an acceptance needs who accepts, and why: it is what is asked for later")
    result = load_result(source, key)
    if result is None:
        raise NothingToAccept(f"{source}: no suite was checked for {key}; `show` lists what there is of a run")
    rules = tuple(outcome["rule"] for outcome in result["outcomes"] if outcome["state"] == "failed")
    if not rules:
        raise NothingToAccept(f"{source}: {key} has broken no rule, there is nothing to accept")
    accepted = Acceptance(rules, by, reason, datetime.now(UTC).isoformat(timespec="seconds"))

    def add(found: dict[str, Any] | None) -> dict[str, Any]:
        return {"acceptances": [*(found or {}).get("acceptances", ()), asdict(accepted)]}

    _update(bucket(), f"{folder(source, key)}/{ACCEPTANCE}", add)
    log.warning("accepted: source=%s key=%s rules=%d by=%s", source, key, len(rules), by)
    close(source, key)
    return accepted


def alarm_kind(key: int | str) -> str:
    """The alarm's kind: one a run, so that another run that passes does not close it."""
    return f"suite_failed:{key}"


def close(source: str, key: int | str) -> None:
    """End the alarm of a run that passes, or was accepted."""
    from include.operations.alarms import close_alarm
    from include.operations.database import begin

    with begin() as connection:
        close_alarm(connection, source, alarm_kind(key))


def past_measures(source: str, before: int) -> list[Mapping[str, float | None]]:
    """The measures of the last runs before this claim: what a retry of it finds does not depend on itself."""
    found = _read(bucket(), f"{FOLDER}/{safe_part(source)}/{PAST}")[0] or {}
    return [run["measures"] for run in found.get("runs", ()) if run["claim_id"] < before]


def remember(source: str, claim_id: int, measures: Mapping[str, float | None]) -> None:
    """Let the run count as a part of the past; once, however often it is repeated."""

    def put(found: dict[str, Any] | None) -> dict[str, Any]:
        others = [run for run in (found or {}).get("runs", ()) if run["claim_id"] != claim_id]
        runs = sorted([*others, {"claim_id": claim_id, "measures": dict(measures)}], key=lambda run: run["claim_id"])
        return {"runs": runs[-PAST_RUNS:]}

    _update(bucket(), f"{FOLDER}/{safe_part(source)}/{PAST}", put)


def not_accepted(failed: Sequence[str], accepted: Sequence[Acceptance]) -> list[str]:
    """The rules that nobody has accepted."""
    allowed = {rule for acceptance in accepted for rule in acceptance.rules}
    return [rule for rule in failed if rule not in allowed]


def _update(objects: Bucket, path: str, change: Callable[[dict[str, Any] | None], dict[str, Any]]) -> None:
    for attempt in range(MAX_TRIES):
        found, generation = _read(objects, path)
        try:
            objects.write(path, _encode(change(found)), "application/json", if_generation_match=generation)
            return
        except GenerationChanged:
            if attempt == MAX_TRIES - 1:
                raise


def _read(objects: Bucket, path: str) -> tuple[dict[str, Any] | None, int]:
    found = objects.read(path)
    if found is None:
        return None, ABSENT
    try:
        return json.loads(found[0]), found[1]
    except ValueError as error:
        # Not taken for "nothing there": acceptances and statistics would be lost without a word.
        raise ValueError(f"gs://{objects.name}/{path} is no JSON: restore an older version, or delete it") from error


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode()
