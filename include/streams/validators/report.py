"""A check's result as one HTML page without scripts and external resources; all text is escaped.

The page may show text from messages and files of unknown senders. It may be opened from a bucket's own origin, or in a
frame of Airflow. So the page contains a Content-Security-Policy that allows only its one style sheet, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

_TONES = {"failed": "failed", "warned": "warned", "passed": "passed", "no past yet": "open", "not measured": "open"}
_LABELS = {"warned": "warning"}


def render(document: Mapping[str, Any]) -> str:
    """Render the page of a result.

    Args:
        document: The result, from `include.streams.validators.sets.document` or of the same form.

    Returns:
        A complete HTML document.
    """
    style, policy = _style()
    title = f"{document['suite']}: {document['source']} {document['key']}"
    parts = [
        _header(document),
        _verdict(document),
        _facts(document),
        _steps(document),
        _table("Broken rules", sorted(filter(_broken, document["outcomes"]), key=lambda o: o["state"]), long=True),
        _table(
            f"The {document.get('thing', 'run')} as a whole",
            [o for o in document["outcomes"] if o["about"] == "run" and not _broken(o)],
        ),
        _columns([o for o in document["outcomes"] if o["about"] == "column" and not _broken(o)]),
        _accepted(document["acceptances"]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n<footer>Checked {_moment(document['checked_at'])}</footer>\n</main></body></html>\n"
    )


@cache
def _style() -> tuple[str, str]:
    style = Path(__file__).with_name("report.css").read_text()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return style, policy


def _broken(outcome: Mapping[str, Any]) -> bool:
    return outcome["state"] in ("failed", "warned")


def _header(document: Mapping[str, Any]) -> str:
    run = f"{document['source']}, {document.get('what', 'claim')} {document['key']}"
    if document.get("run_id"):
        run += f", run {document['run_id']}"
    title = document["suite"].replace("_", " ").capitalize()
    description = f"<p>{escape(document['description'])}</p>" if document["description"] else ""
    return f"<header><h1>{escape(title)}</h1><p>{escape(run)}</p>{description}</header>"


def _verdict(document: Mapping[str, Any]) -> str:
    failed = [o for o in document["outcomes"] if o["state"] == "failed"]
    warned = [o for o in document["outcomes"] if o["state"] == "warned"]
    rules = f"{len(document['outcomes'])} rules"
    if document["stopped"]:
        tone, head = "failed", f"{document.get('verdict', 'Stopped')}: {len(failed)} of {rules} broken"
        text = document.get("consequence") or "Nothing was deleted, and no later task has run."
    elif failed:
        tone, head = "accepted", f"Accepted, although {len(failed)} of {rules} are broken"
        text = "A person has decided that the data are unusual but correct."
    else:
        tone, head = "passed", f"Passed: {rules}"
        open_rules = sum(o["state"] in ("no past yet", "not measured") for o in document["outcomes"])
        text = f"{open_rules} could not be judged: too few rows, or too few earlier runs." if open_rules else ""
    if warned:
        text = f"{text} {len(warned)} {'warning' if len(warned) == 1 else 'warnings'}.".strip()
    return f'<section class="verdict {tone}"><strong>{escape(head)}</strong>{_paragraph(text)}</section>'


def _facts(document: Mapping[str, Any]) -> str:
    counts = {name.replace("_", " "): n for name, n in document.get("counts", {}).items() if n is not None}
    facts = {"rows checked": document["rows"], **counts}
    shown = [(name, f"{number:,}", "") for name, number in facts.items()]
    for r in document.get("ranges", ()):
        shown.append((f"offsets of partition {r['partition']}", f"{r['start']:,} to {r['end'] - 1:,}", "small"))
    cells = "".join(
        f'<div class="{kind}"><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>' for name, text, kind in shown
    )
    return f'<section><dl class="facts">{cells}</dl></section>'


def _steps(document: Mapping[str, Any]) -> str:
    steps = document.get("steps", ())
    if not steps:
        return ""
    items = "".join(f"<li>{escape(step['text'])}{_code(step.get('command'))}</li>" for step in steps)
    return f'<section><h2>What to do</h2><ol class="steps">{items}</ol></section>'


def _code(command: str | None) -> str:
    return f"<br><code>{escape(command)}</code>" if command else ""


def _table(title: str, outcomes: list[Mapping[str, Any]], *, long: bool = False) -> str:
    if not outcomes:
        return ""
    rows = "".join(
        f'<tr class="{_TONES[o["state"]]}"><td>{_badge(o["state"])}</td><th scope="row">{escape(o["rule"])}</th>'
        f'<td class="number">{escape(o["observed"])}{_where(o["where"])}</td>'
        f'<td class="quiet">{escape(o["expected"])}</td></tr>'
        for o in outcomes
    )
    return (
        f'<section{" class=long" if long else ""}><h2>{escape(title)}</h2><table><colgroup><col class="state">'
        '<col class="rule"><col><col></colgroup><thead><tr><th scope="col">State</th><th scope="col">Rule</th>'
        f'<th scope="col">Found</th><th scope="col">Expected</th></tr></thead><tbody>{rows}</tbody></table></section>'
    )


def _columns(outcomes: list[Mapping[str, Any]]) -> str:
    """The passed rules about columns, one line per column, because they are many and similar."""
    if not outcomes:
        return ""
    rows = ""
    for column, group in groupby(outcomes, key=lambda o: o["rule"].split(": ", 1)[0]):
        rules = ", ".join(o["expected"] for o in group)
        rows += f'<tr class="passed"><td>{_badge("passed")}</td><th scope="row">{escape(column)}</th>'
        rows += f'<td class="quiet">{escape(rules)}</td></tr>'
    return (
        '<section class=long><h2>Every row</h2><table><colgroup><col class="state"><col class="rule"><col></colgroup>'
        '<thead><tr><th scope="col">State</th><th scope="col">Column</th><th scope="col">Rules</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></section>"
    )


def _accepted(acceptances: Iterable[Mapping[str, Any]]) -> str:
    items = "".join(
        f"<li>{escape(a['by'])}, {_moment(a['at'])}: {escape(a['reason'])}"
        f'<div class="where">{escape("; ".join(a["rules"]))}</div></li>'
        for a in acceptances
    )
    return f'<section><h2>Accepted by</h2><ol class="steps">{items}</ol></section>' if items else ""


def _badge(state: str) -> str:
    return f'<span class="badge {_TONES[state]}">{escape(_LABELS.get(state, state))}</span>'


def _where(examples: Iterable[str]) -> str:
    return "".join(f'<div class="where">{escape(example)}</div>' for example in examples)


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _moment(text: str) -> str:
    return escape(text.replace("T", " ").replace("+00:00", " UTC"))
