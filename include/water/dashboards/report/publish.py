"""The report in the bucket: a page for every run, and a pointer to the newest.

    reports/<day>/<time>.html   never changed once written
    reports/latest.json         which report is shown, and when it was computed

The pointer is replaced only if nobody else has replaced it since it was read, and never by an older report. So a late
run that was believed dead does not show an old report.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from include.streams.lake.buckets import Bucket, Entry
from include.water.dashboards.report.render import STYLE, style_source

log = logging.getLogger(__name__)

FOLDER = "reports"
LATEST = f"{FOLDER}/latest.json"
HTML = "text/html; charset=utf-8"
# All reports are kept for KEEP_ALL, and the last report of each day for KEEP_DAYS.
KEEP_ALL = timedelta(days=2)
KEEP_DAYS = timedelta(days=400)
_REPORT = re.compile(rf"{FOLDER}/([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})/[0-9]{{6}}\.[0-9]{{6}}Z\.html")
_STYLE = re.compile(r"'sha256-[A-Za-z0-9+/]{43}='")


@dataclass(frozen=True)
class Pointer:
    path: str
    computed_at: datetime
    # The page's style, as a source of a content security policy.
    style: str


def latest(bucket: Bucket) -> Pointer | None:
    """The pointer to the report that is shown; None before the first report.

    Raises:
        ValueError, KeyError: The pointer was not written by this module.
    """
    found = bucket.read(LATEST)
    return _pointer(found[0]) if found else None


def _pointer(content: bytes) -> Pointer:
    document = json.loads(content)
    path, style = str(document["path"]), str(document["style"])
    # The page is shown inside Airflow: whatever the pointer says, the path must be in the folder of reports, and the
    # policy must have this form.
    if not _REPORT.fullmatch(path) or not _STYLE.fullmatch(style):
        raise ValueError(f"{LATEST} names {path[:100]!r}, which is no report; run publish_dashboard again")
    return Pointer(path, datetime.fromisoformat(document["computed_at"]), style)


def publish(bucket: Bucket, html: str, computed_at: datetime, zone: ZoneInfo) -> str:
    """Store the report and show it, unless a newer report is shown already.

    Args:
        bucket: The artifacts bucket.
        html: The page.
        computed_at: The time of its data.
        zone: The time zone of the folders' days.

    Returns:
        The path of the report.
    """
    day = computed_at.astimezone(zone).date()
    path = f"{FOLDER}/{day}/{computed_at:%H%M%S.%f}Z.html"
    # A lone surrogate, from a name that was cut in two, is replaced: it must not prevent the report.
    bucket.write(path, html.encode(errors="replace"), HTML)
    _show(bucket, path, computed_at)
    for old in outdated(bucket.list(f"{FOLDER}/"), path, computed_at):
        bucket.delete(old)
    return path


def _show(bucket: Bucket, path: str, computed_at: datetime) -> None:
    document = {"path": path, "computed_at": computed_at.isoformat(), "style": style_source(STYLE)}
    body = json.dumps(document).encode()

    def change(content: bytes | None) -> bytes | None:
        try:
            shown = _pointer(content) if content is not None else None
        except (ValueError, KeyError, TypeError):
            # Written by hand, or truncated: it is replaced like any other pointer.
            shown = None
        if shown and shown.computed_at > computed_at:
            log.warning("a newer report is shown already: path=%s", shown.path)
            return None
        return body

    if bucket.update(LATEST, change, "application/json"):
        log.info("report published: path=%s", path)


def outdated(entries: Iterable[Entry], shown: str, now: datetime) -> list[str]:
    """The paths of reports to delete: of older days only the last report is kept, and no report is kept forever.

    Args:
        entries: The objects in the folder of reports.
        shown: The path of the report that is shown; it is never deleted.
        now: The current time.
    """
    by_day: dict[str, list[Entry]] = {}
    for entry in entries:
        if match := _REPORT.fullmatch(entry.path):
            by_day.setdefault(match.group(1), []).append(entry)
    paths = []
    for of_day in by_day.values():
        *others, last = sorted(of_day, key=lambda entry: entry.path)
        paths += [entry.path for entry in others if now - entry.updated > KEEP_ALL]
        paths += [last.path] if now - last.updated > KEEP_DAYS else []
    return [path for path in paths if path != shown]
