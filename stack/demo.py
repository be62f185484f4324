"""`make demo`: start the stack and the simulators, show progress, and check that every message has an outcome."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from include import project
from include.streams import Demo
from stack.errors import StackError
from stack.observer import DEAD_LETTERS, Observer, Snapshot
from stack.stack import PROJECT, Stack

TIMEOUT_SECONDS = 300  # after the last message; a run takes seconds, a retry after a killed task a minute
# The page of plugins/streams.py.
STREAMS = "plugin/streams"
LINKS = 3  # shown for questions that wait for a person; the rest are counted
LINE_SECONDS = 5  # between the lines of a log, where no terminal can redraw


def demo(stack: Stack, seconds: int, stop_at_end: bool) -> int:
    """Run the demo; Ctrl-C ends it at any time.

    Args:
        stack: The stack.
        seconds: How long the simulators send.
        stop_at_end: Stop at the end instead of waiting for Ctrl-C.

    Returns:
        The exit code: 0 if every message that was sent is accounted for, 1 if not, 130 after Ctrl-C.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    was_running = stack.is_running()
    try:
        stack.up()
        accounted = show(stack, seconds)
        if not stop_at_end:
            print("Airflow and the services keep running; Ctrl-C stops them", flush=True)
            _wait_for_interrupt()
        return 0 if accounted else 1
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return 130
    finally:
        if not was_running:
            print("stopping the services", flush=True)
            stack.down()


def _wait_for_interrupt() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


def show(stack: Stack, seconds: int) -> bool:
    console = Console(width=None if sys.stdout.isatty() else 120)  # a log has no width; rich would assume 80
    observer = Observer(stack)
    simulators = Simulators(stack, seconds)
    try:
        sent, snapshot = _watch(console, observer, simulators, seconds)
    finally:
        simulators.stop()
    problems = unaccounted(observer.consumers, sent, snapshot, observer.landing_consumers)
    console.print(*_tables(observer.consumers, sent, snapshot))
    for problem in problems:
        console.print(f"NOT ACCOUNTED FOR: {problem}", style="bold red")
    if not problems:
        console.print("Every message that was sent is accounted for.", style="bold green")
    airflow = stack.endpoints()["airflow"]
    for line in links(airflow["url"], snapshot.waiting):
        console.print(line, soft_wrap=True, highlight=False)
    console.print("`make look` shows lag, outcomes, claims and alarms at any time.")
    console.print(f"Airflow: {airflow['url']}  user {airflow['username']}  password {airflow['password']}")
    return not problems


def links(url: str, waiting: list[tuple[str, str]]) -> list[str]:
    """The pages to visit: the project's pages, and the questions that wait for a person.

    Args:
        url: Airflow's URL.
        waiting: (subject, path) of each question.

    Returns:
        Lines to print.
    """
    lines = [f"Streams, all consumers and topics: {url}/{STREAMS}"]
    lines += [f"{title}: {url}/{path}" for demo in project.PROJECT.demos for title, path in demo.pages.items()]
    if waiting:
        lines.append(f"waiting for a person: {len(waiting)}")
        lines += [f"  {subject}: {url}/{path}" for subject, path in waiting[:LINKS]]
    if len(waiting) > LINKS:
        lines.append(f"  and {len(waiting) - LINKS} more: {url}/required_actions")
    return lines


class Simulators:
    """The simulators of all packages, as processes. Each writes a report of the messages that it has sent."""

    def __init__(self, stack: Stack, seconds: int):
        """Start them.

        Raises:
            StackError: No package has simulators.
        """
        self._logs = stack.supervisor.logs
        self._processes: dict[str, subprocess.Popen] = {}
        self._reports: list[Path] = []
        for package in project.PROJECT.packages:
            if package.demo.simulators:
                self._start(stack, seconds, package.name, package.demo)
        if not self._processes:
            raise StackError("no package of include/project.py has simulators; declare Demo(simulators=...) in one")

    def _start(self, stack: Stack, seconds: int, name: str, demo: Demo) -> None:
        report = stack.folder / f"simulators.{name}.json"
        report.unlink(missing_ok=True)
        with self._log(name).open("w") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", str(demo.simulators), "run", "--for", str(seconds), "--report", str(report),
                 *demo.arguments],
                cwd=PROJECT, env={**os.environ, **stack.environment()}, stdout=log, stderr=log,
            )  # fmt: skip
        self._reports.append(report)

    def _log(self, name: str) -> Path:
        return self._logs / f"simulators.{name}.log"

    def sent(self) -> dict:
        """What all have sent until now: {"sent" and "planted_bad": {topic: messages}, "finished": whether all have}."""
        reports = [json.loads(report.read_text()) if report.exists() else {} for report in self._reports]
        total: dict = {"finished": all(report.get("finished", bool(report)) for report in reports)}
        for kind in ("sent", "planted_bad"):
            counts: Counter[str] = Counter()
            for report in reports:
                counts.update(report.get(kind, {}))
            total[kind] = dict(counts)
        return total

    def have_ended(self) -> bool:
        """Whether all have ended.

        Raises:
            StackError: One has failed.
        """
        states = {name: process.poll() for name, process in self._processes.items()}
        for name, code in states.items():
            if code:
                raise StackError(f"the simulators of the package {name} failed; see {self._log(name)}")
        return None not in states.values()

    def stop(self) -> None:
        """End those that still run, and wait for all."""
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self._processes.values():
            process.wait()


def _watch(console: Console, observer: Observer, simulators: Simulators, seconds: int) -> tuple[dict, Snapshot]:
    """Show progress until all is accounted for or the time is over; returns (simulators' report, last snapshot)."""
    begin = last_line = time.monotonic()
    deadline = begin + seconds + TIMEOUT_SECONDS
    snapshot, sent = Snapshot(), {}
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="visible") as live:
        while time.monotonic() < deadline:
            # Checked first: when all have ended, the report that is read below is complete.
            ended = simulators.have_ended()
            sent = simulators.sent()
            snapshot = _look(observer) or snapshot
            elapsed = time.monotonic() - begin
            if console.is_terminal:
                live.update(Group(Text(f"{elapsed:.0f} s"), *_tables(observer.consumers, sent, snapshot)), refresh=True)
            elif time.monotonic() - last_line > LINE_SECONDS:
                last_line = time.monotonic()
                print(one_line(snapshot, elapsed), flush=True)
            if ended and not unaccounted(observer.consumers, sent, snapshot, observer.landing_consumers):
                break
            time.sleep(1)
    return sent, snapshot


def _look(observer: Observer) -> Snapshot | None:
    """Take a snapshot; None while a service is unavailable: the demo continues when it is back."""
    import psycopg
    from confluent_kafka import KafkaException

    try:
        return observer.look()
    except (psycopg.Error, KafkaException):
        return None


def unaccounted(
    consumers: dict[str, list[str]],
    sent: dict,
    snapshot: Snapshot,
    landing_consumers: dict[str, list[str]] | None = None,
) -> list[str]:
    """What is still missing, in words; [] when every message that was sent is accounted for.

    Args:
        consumers: {consumer of the event lane: its topics}.
        sent: The simulators' report.
        snapshot: The state of the stack.
        landing_consumers: {consumer of a landing table: its topics}.
    """
    problems = []
    if not sent.get("finished", bool(sent)):
        problems.append("the simulators did not finish")
    planted = sent.get("planted_bad", {})
    for topic in sorted({*sent.get("sent", {}), *planted}):
        number = sent.get("sent", {}).get(topic, 0) + planted.get(topic, 0)
        if snapshot.messages.get(topic, 0) < number:
            problems.append(f"{topic}: {number} sent, {snapshot.messages.get(topic, 0)} in the topic")
    for consumer, topics in {**consumers, **(landing_consumers or {})}.items():
        if snapshot.lag.get(consumer, 1):
            problems.append(f"{consumer}: lag {snapshot.lag.get(consumer, 'unknown')}")
        if snapshot.open_claims.get(consumer):
            problems.append(f"{consumer}: {snapshot.open_claims[consumer]} open claims")
        for topic in topics:
            # Exact, because nothing here uses transactions, so every offset is a message. Landed messages are counted
            # by each run, which fails when its counts do not balance: its claim then stays open.
            missing = snapshot.unhandled(consumer, topic) if consumer in consumers else 0
            if missing:
                problems.append(f"{consumer}: {missing} messages of {topic} without an inbox row")
            recorded = snapshot.outcomes.get((consumer, topic), {}).get("dead_letter", 0)
            if (kept := min(recorded, snapshot.dead_letters(topic))) < planted.get(topic, 0):
                problems.append(f"{consumer}: {planted[topic]} bad messages on {topic}, {kept} in its dead letters")
    problems += [f"{name}: not yet" for name, number in snapshot.awaited.items() if not number]
    return problems


def one_line(snapshot: Snapshot, elapsed: float) -> str:
    """The state of the stack as one line of a log."""
    arrived = {t: n for t, n in snapshot.messages.items() if n and not t.endswith(DEAD_LETTERS)}
    dead = sum(n for t, n in snapshot.messages.items() if t.endswith(DEAD_LETTERS))
    parts = {
        "in": arrived,
        "runs": {dag: sum(states.values()) for dag, states in snapshot.runs.items()},
        "lag": snapshot.lag,
        "open claims": snapshot.open_claims,
        **snapshot.results,
    }
    text = "; ".join(f"{name}: {', '.join(f'{k} {v}' for k, v in part.items()) or 0}" for name, part in parts.items())
    return f"{elapsed:5.0f} s  {text}; waiting for a person: {len(snapshot.waiting)}; dead letters: {dead}"


def _tables(consumers: dict[str, list[str]], sent: dict, snapshot: Snapshot) -> list:
    topics = Table("topic", "sent", "bad sent", "in Kafka", "dead letters", title="messages", title_justify="left")
    for topic, number in snapshot.messages.items():
        if not topic.endswith(DEAD_LETTERS):
            simulated = [sent.get(kind, {}).get(topic, "") for kind in ("sent", "planted_bad")]
            topics.add_row(topic, *map(str, simulated), str(number), str(snapshot.dead_letters(topic)))
    inbox = Table(
        "consumer", "topic", "handled", "duplicates", "dead letters", "not wanted", "missing", "lag", "open claims"
    )
    for consumer, names in consumers.items():
        for topic in names:
            outcomes = snapshot.outcomes.get((consumer, topic), {})
            numbers = [outcomes.get(name, 0) for name in ("handled", "duplicate", "dead_letter", "not_wanted")]
            numbers += [snapshot.unhandled(consumer, topic), snapshot.lag.get(consumer, "?")]
            inbox.add_row(consumer, topic, *map(str, numbers), str(snapshot.open_claims.get(consumer, 0)))
    runs = Table("Dag", "runs")
    for dag, states in snapshot.runs.items():
        runs.add_row(dag, ", ".join(f"{number} {state}" for state, number in states.items()))
    tables = [topics, inbox, runs]
    for title, rows in snapshot.results.items():
        table = Table(title, "")
        for name, number in rows.items():
            table.add_row(str(name), str(number))
        tables.append(table)
    return [*tables, *(Text(f"alarm: {line}", style="bold red") for line in snapshot.alarms)]
