"""An overview as lines of text, for a terminal of 80 columns or more."""

import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime

from include.streams.overview.facts import AlarmFacts, ConsumerFacts, LandedTopic, Overview

# Lines of an alarm's text; `python -m include.streams.operations alarms` prints all of it.
ALARM_LINES = 2
MAX_ALARMS = 5
MAX_DAGS = 8
NAME_WIDTH = 25
# States of runs that are shown for each Dag; all other states count as ended well.
BUSY = ("running", "queued", "failed")


def lines_of(overview: Overview, width: int = 80) -> list[str]:
    """Show an overview.

    Args:
        overview: The data.
        width: The longest line, in characters.
    """
    at, since = datetime.fromisoformat(overview["at"]), datetime.fromisoformat(overview["since"])
    parts = [
        [f"{at:%Y-%m-%d %H:%M:%S %Z}, counted over the last {duration((at - since).total_seconds())}"],
        [f"{problem['service']} cannot be queried: {problem['text']}" for problem in overview["problems"]],
        _consumers(overview["consumers"]),
        _landed(overview["landed"]),
        _dags(overview["dags"]),
        _alarms(overview["alarms"], width),
    ]
    return [line[:width] for part in parts if part for line in [*part, ""]][:-1]


def duration(seconds: float | None) -> str:
    """A duration in its largest unit; "-" for None."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _consumers(consumers: Iterable[ConsumerFacts]) -> list[str]:
    rows: list[tuple[str, ...]] = [("CONSUMER", "lag", "age", "handled", "duplicates", "dead")]
    for consumer in consumers:
        rows.append((f"{consumer['name']}: {_claims(consumer)}",))
        is_event_lane = consumer["lane"] == "event"
        for topic in consumer["topics"]:
            counts = [_number(topic[name]) for name in ("handled", "duplicates")] if is_event_lane else ["-", "-"]
            lag = _number(topic["lag"])
            rows.append(
                (f"  {topic['topic']}", lag, duration(topic["age_seconds"]), *counts, _number(topic["dead_letters"]))
            )
            if topic["not_wanted"]:
                rows.append((f"    {topic['not_wanted']:,} of other types, not wanted",))
        if consumer["dead_letters"]:
            reasons = sorted(consumer["dead_letters"].items(), key=lambda item: (-item[1], item[0]))
            rows.append((f"  dead letters: {', '.join(f'{number:,} {reason}' for reason, number in reasons)}",))
    return _table(rows, (NAME_WIDTH, 9, 8, 11, 12, 8)) if len(rows) > 1 else []


def _claims(consumer: ConsumerFacts) -> str:
    number = consumer["open_claims"]
    if number is None:
        return "open claims ?"
    if not number:
        return "no open claim"
    text = f"{number:,} open {'claim' if number == 1 else 'claims'}, {_number(consumer['unhandled'])} messages"
    text += f", oldest {duration(consumer['oldest_claim_seconds'])}"
    return f"{text}; {consumer['failing']:,} ranges fail" if consumer["failing"] else text


def _landed(topics: Iterable[LandedTopic]) -> list[str]:
    rows: list[tuple[str, ...]] = [("LANDED TOPIC", "rows", "clean", "not landed", "missing", "last commit")]
    for topic in topics:
        numbers = [_number(topic[name]) for name in ("rows", "clean_rows", "not_landed", "missing")]
        rows.append((f"  {topic['topic']}", *numbers, duration(topic["committed_seconds"])))
        cause = f": {topic['cause']}" if topic["cause"] else ""
        rows.append((f"    connector {topic['connector'] or '?'}{cause}",))
    return _table(rows, (NAME_WIDTH, 11, 11, 12, 9, 12)) if len(rows) > 1 else []


def _dags(dags: dict[str, dict[str, int]] | None) -> list[str]:
    if not dags:
        return []
    busy = {dag: states for dag, states in dags.items() if any(states.get(state) for state in BUSY)}
    shown = sorted(busy, key=lambda dag: (-busy[dag].get("failed", 0), dag))[:MAX_DAGS]
    rows: list[tuple[str, ...]] = [("DAG RUNS", *BUSY, "success")]
    for dag in shown:
        rows.append((f"  {dag}", *(_number(dags[dag].get(state, 0)) for state in (*BUSY, "success"))))
    others = [states for dag, states in dags.items() if dag not in shown]
    if others:
        totals = [sum(states.get(state, 0) for states in others) for state in (*BUSY, "success")]
        rows.append((f"  {len(others)} {'others' if shown else 'Dags'}", *map(_number, totals)))
    return _table(rows, (NAME_WIDTH + 8, 9, 9, 9, 9))


def _alarms(alarms: Sequence[AlarmFacts] | None, width: int) -> list[str]:
    if alarms is None:
        return []
    if not alarms:
        return ["no alarm is open"]
    lines = [f"ALARMS: {len(alarms)} open"]
    for alarm in alarms[:MAX_ALARMS]:
        about = " ".join(filter(None, (alarm["source"], alarm["key"])))
        lines.append(f"  {alarm['kind']}  {about}  for {duration(alarm['open_seconds'])}")
        text = textwrap.wrap(" ".join(alarm["message"].split()), width - 4, max_lines=ALARM_LINES, placeholder=" ...")
        lines += [f"    {line}" for line in text]
        lines.append(f"    see {alarm['runbook']}")
    if len(alarms) > MAX_ALARMS:
        lines.append(f"  and {len(alarms) - MAX_ALARMS} more: python -m include.streams.operations alarms")
    return lines


def _table(rows: Iterable[Sequence[str]], widths: Sequence[int]) -> list[str]:
    """Align the first column left and the others right; a row with one cell becomes a line of its own."""
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=False)]
        # A long name gets a line of its own, so that the columns stay aligned.
        if cells and len(first) > widths[0]:
            lines.append(first)
            first = ""
        lines.append((first.ljust(widths[0]) + "".join(cells)).rstrip() if cells else first)
    return lines
