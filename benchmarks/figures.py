"""`make figures`: keeps the figures that the benchmarks have printed, and writes the pages that show them.

    make figures LOGS="events.log faults.log"

A log is the output of a benchmark; its last JSON object has the figures (`benchmarks/results.py`). They replace the
earlier figures of the same command in docs/figures.json. Then docs/figures.md and the README's tables, which are
between markers, are written from that file. Without logs, only the pages are written.

If a log does not say what was measured, `--command` is required, and `--commit` if it is not the current commit.
"""

from __future__ import annotations

import argparse
import json
import re
import string
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.figure_tables import COMMANDS, README, SECTIONS, Cell, Section, Table
from benchmarks.results import PROJECT, Measured

STORE = PROJECT / "docs" / "figures.json"
PAGE = PROJECT / "docs" / "figures.md"
README_PAGE = PROJECT / "README.md"
WIDTH = 120

Figures = Mapping[str, Any]
HEAD = """\
# Measured figures

<!-- Written by `make figures` from figures.json; do not edit this page. -->

This page has the figures of the benchmarks, each with the command that measures it. Other pages link to it. The last
line of a command's output is a JSON object with these figures and more. To measure again, run the command, and then
`make figures LOGS="FILE..."` with its saved output.

The local stack, Airflow and the benchmark share the cores of the machine. Compare only figures of the same run, because
figures of different days or machines differ.

A figure that was measured once, for one decision, is only on the page that explains the decision.
"""


class LogError(Exception):
    """A log without figures, or without the command that measured them."""


def read(path: Path, command: str | None, commit: str | None) -> tuple[Measured, dict[str, Any]]:
    """Read the figures of a log.

    Args:
        path: The log.
        command: The command, if the log does not name it.
        commit: The commit, if the log does not name it; by default the one that is checked out.

    Returns:
        The measurement (command, date, commit, machine), and the figures.

    Raises:
        LogError: There are no figures, or the command is unknown.
    """
    for line in reversed(path.read_text(errors="replace").splitlines()):
        if line.startswith("{"):
            try:
                figures = json.loads(line)
            except ValueError:
                continue
            break
    else:
        raise LogError(f"{path}: has no JSON object; give it the whole output of a benchmark that has ended")
    how: Measured | None = figures.pop("measured", None)
    if how is None:
        if command is None:
            raise LogError(f"{path}: does not say what was measured; add COMMAND='make bench-events' or the like")
        day = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        how = {
            "command": command,
            "date": f"{day:%Y-%m-%d}",
            "commit": commit or results.commit(),
            "machine": results.machine(),
        }
    if _target(how["command"]) not in SECTIONS:
        raise LogError(f"{path}: {how['command']} is not in benchmarks/figure_tables.py; add a section there")
    return how, figures


def page(store: Mapping[str, Figures]) -> str:
    """docs/figures.md, of {command: {date, commit, machine, figures}}."""
    parts = [HEAD]
    for target, section in SECTIONS.items():
        commands = sorted(command for command in store if _target(command) == target)
        if commands:
            parts.append(f"## {section.title}\n\n{textwrap.fill(section.note, WIDTH, break_on_hyphens=False)}\n")
        for together in [commands] if section.one_table and commands else [[command] for command in commands]:
            parts.append("".join(f"- {_source(command, store[command])}\n" for command in together))
            parts += _tables(section, [with_sums(store[command]["figures"]) for command in together])
    return "\n".join(parts)


def with_tables(text: str, store: Mapping[str, Figures]) -> str:
    """The text of a page with new tables, each between `<!-- figures: NAME -->` and `<!-- end -->`."""
    context = {name: with_sums(store[command]["figures"]) for name, command in COMMANDS.items() if command in store}

    def table(marker: re.Match[str]) -> str:
        return f"{marker[1]}\n\n{markdown(README[marker[2]], context)}\n{marker[3]}"

    return re.sub(r"(<!-- figures: ([\w ]+) -->)\n.*?(<!-- end -->)", table, text, flags=re.DOTALL)


def markdown(table: Table, *figures: Figures) -> str:
    """Fill a table with figures.

    Args:
        table: The table.
        figures: The figures of one measurement, or of several; the rows are repeated for each.

    Returns:
        Markdown, without rows that have only a label; "" without rows.
    """
    rows = [[_cell(cell, measurement) for cell in row] for measurement in figures for row in table.rows]
    rows = [row for row in rows if any(row[1:])]
    if not rows:
        return ""
    lines = [[_cell(cell, figures[0]) for cell in table.header], ["---"] * len(table.header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def with_sums(figures: Figures) -> dict[str, Any]:
    """The figures, with the sums that the tables show."""
    extended = dict(figures)
    if kills := extended.get("kills"):
        extended["faults"] = sum(kills.values()) + len(extended.get("faults_without_kills", ()))
        extended["kinds_of_faults"] = len(kills)
    if isinstance(requests := extended.get("requests"), dict):
        extended["faults_of_requests"] = sum(requests["hits"].values())
    if "wrong_rows" in extended:
        extended["wrong_rows_in_all"] = sum(extended["wrong_rows"].values())
    return extended


class _Formatter(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec == "rate":
            format_spec = ",.0f" if value >= 10 else ".1f"
        return super().format_field(value, format_spec)


def _cell(cell: Cell, figures: Figures) -> str:
    return "".join(_parts((cell,) if isinstance(cell, str) else cell, figures))


def _parts(parts: tuple[str, ...], figures: Figures) -> Iterator[str]:
    for part in parts:
        try:
            yield _Formatter().vformat(part, (), figures)
        except (KeyError, TypeError):  # not measured
            continue


def _tables(section: Section, figures: Sequence[Figures]) -> list[str]:
    return [text for table in section.tables if (text := markdown(table, *figures))]


def _source(command: str, entry: Figures) -> str:
    return f"`{command}`, {entry['date']}, commit {entry['commit']}; {entry['machine']}."


def _target(command: str) -> str:
    return command.split()[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", nargs="*", type=Path, metavar="LOG", help="output of a benchmark")
    parser.add_argument("--command", help="what was measured, if the logs do not say so")
    parser.add_argument("--commit", help="the commit that was measured, if the logs do not say so")
    options = parser.parse_args()
    store = json.loads(STORE.read_text())
    try:
        for path in options.logs:
            how, figures = read(path, options.command, options.commit)
            entry = {name: value for name, value in how.items() if name != "command"}
            store[how["command"]] = {**entry, "figures": figures}
    except (LogError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    STORE.write_text(json.dumps(store, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    PAGE.write_text(page(store))
    README_PAGE.write_text(with_tables(README_PAGE.read_text(), store))
    return 0


if __name__ == "__main__":
    sys.exit(main())
