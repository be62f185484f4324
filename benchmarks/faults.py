"""`make faults`: kill everything under load, then count what was lost and what was done twice.

Messages, some of them bad, are sent in bursts, to a chunked consumer and to one with a Dag run per message. Meanwhile
kill -9 hits the triggerer, the scheduler, claiming tasks, handling tasks (those of a single message right before and
right after their transaction) and the broker, and PostgreSQL ends the connections of the operational database.
Afterwards every message sent is looked for: good ones among the effects (a table without a unique key), bad ones in the
dead-letter topics. Then claims are stalled under traffic, to see how many Dag runs that makes. Prints a table and, as
its last line, one JSON object.
"""

import argparse
import collections
import contextlib
import itertools
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator

from benchmarks import faults_requests
from benchmarks.consumers import FAULTS, FAULTS_MESSAGES, FAULTS_MESSAGES_TOPIC, FAULTS_TOPICS, Probe
from benchmarks.kills import kill_program, kill_task, kill_task_at
from benchmarks.stand import Stand, say, stand
from include.contracts import Topic
from include.contracts.breaking import broken

BURST = 250
BAD_IN_A_BURST = 3
# Of a burst's messages, those that each start a run.
RUNS_IN_A_BURST = 8
CONSUMERS = [FAULTS.name, FAULTS_MESSAGES.name]
ALL_TOPICS = (*FAULTS_TOPICS, FAULTS_MESSAGES_TOPIC)


class Traffic:
    """Sends numbered messages in bursts, from a thread of its own, and knows what the broker has acknowledged."""

    def __init__(self, it: Stand) -> None:
        self.it = it
        self.good: set[str] = set()
        self.bad: set[bytes] = set()
        self._numbers = itertools.count()
        self._kinds = itertools.cycle(range(100))

    @property
    def sent(self) -> int:
        return len(self.good) + len(self.bad)

    def burst(self, good: int, bad: int, runs: int = 0) -> None:
        """Send to one of the chunked topics, and `runs` messages and a bad one to the other."""
        self._send(FAULTS_TOPICS[next(self._kinds) % len(FAULTS_TOPICS)], good, bad)
        if runs:
            self._send(FAULTS_MESSAGES_TOPIC, runs, 1)

    def _send(self, topic: Topic, good: int, bad: int) -> None:
        numbers = [f"{topic.name}-{next(self._numbers)}" for _ in range(good)]
        values = [json.dumps({"version": 1, "number": number}).encode() for number in numbers]
        spoiled = [self._spoil(topic) for _ in range(bad)]
        mixed = values + spoiled
        random.shuffle(mixed)
        self.it.send(topic.name, mixed)
        self.good.update(numbers)
        self.bad.update(spoiled)

    def _spoil(self, topic: Topic) -> bytes:
        """A value that breaks the contract in one of all ways, and is like no other."""
        number = f"bad-{next(self._numbers)}"
        values = [v for v in broken(topic, Probe(version=1, number=number)).values() if v and number.encode() in v]
        return values[next(self._kinds) % len(values)]


def end_database_connections(it: Stand) -> bool:
    """As a failover does: every connection to the operational database but ours is ended, while claims are made."""
    deadline = time.monotonic() + 60
    query = (
        "select count(pg_terminate_backend(pid)) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()"
    )
    while time.monotonic() < deadline:
        if it.query(query)[0][0]:
            return True
        time.sleep(0.01)
    return False


FAULTS_BY_NAME: dict[str, Callable[[Stand], bool]] = {
    "triggerer": lambda it: kill_program(it, "triggerer"),
    "scheduler": lambda it: kill_program(it, "scheduler"),
    "claim task": lambda it: kill_task(it, "faults", "claim"),
    "handling task": lambda it: kill_task(it, "faults", "handle"),
    "fan-out task": lambda it: kill_task(it, "faults_fan_out", "claim"),
    # The effect's own table, and the one that is written when the effect's transaction is committed.
    "message task before commit": lambda it: kill_task_at(it, "bench_effects", "faults_message", "handle"),
    "message task after commit": lambda it: kill_task_at(it, "handled_ranges", "faults_message", "handle"),
    "broker": lambda it: kill_program(it, "kafka"),
    "database connections": end_database_connections,
}


@contextlib.contextmanager
def bursts(traffic: Traffic, total: int, pause: float) -> Iterator[threading.Thread]:
    """Send in the background until `total` messages are sent."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while traffic.sent < total:
                traffic.burst(
                    max(1, min(BURST, total - traffic.sent) - BAD_IN_A_BURST), BAD_IN_A_BURST, RUNS_IN_A_BURST
                )
                time.sleep(pause)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield thread
    thread.join()
    if failures:
        raise failures[0]


def effects(it: Stand) -> list[str]:
    names = [topic.name for topic in ALL_TOPICS]
    return [n for (n,) in it.query("select number from bench_effects where lane = any(:names)", names=names)]


def dead_letters(it: Stand) -> set[bytes]:
    """What is in the dead-letter topics, read by somebody else."""
    return {value for topic in ALL_TOPICS for _, value in it.records(topic.dead_letter_name, "")}


def wait_until_handled(it: Stand, traffic: Traffic, timeout: float) -> None:
    """Wait until every message is done and every claim closed, or nothing more is to be expected."""
    deadline = time.monotonic() + timeout
    last = ""
    while time.monotonic() < deadline:
        ((done,),) = it.query("select count(*) from inbox where consumer = any(:names)", names=CONSUMERS)
        ((opened,),) = it.query(
            "select count(*) from claims where consumer = any(:names) and closed_at is null", names=CONSUMERS
        )
        if done >= traffic.sent and not opened:
            return
        line = f"handled {done} of {traffic.sent}, {opened} claims open"
        if line != last:
            say(line)
            last = line
        time.sleep(5)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000, help="to send under faults (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each fault hits (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=150, help="in the second part (default: %(default)s)")
    parser.add_argument("--stall-minutes", type=float, default=10, help="of claims that fail (default: %(default)s)")
    options = parser.parse_args()
    kills: collections.Counter[str] = collections.Counter()
    # A killed scheduler's tasks are noticed by their missing heartbeat.
    with stand({"AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30"}) as it:
        it.wait_for_dags()
        traffic = Traffic(it)
        # Spread over the faults, so that each hits a lane at work.
        pause = max(1.0, options.rounds * len(FAULTS_BY_NAME) * 12 / (options.messages / BURST))
        with bursts(traffic, options.messages, pause) as sending:
            for n in range(options.rounds):
                for name, fault in FAULTS_BY_NAME.items():
                    time.sleep(random.uniform(1, 4))
                    kills[name] += fault(it)
                    say(f"round {n + 1}: {name} hit {kills[name]} times; {traffic.sent} sent, runs {it.runs('faults')}")
            if sending.is_alive():
                say("waiting for the rest to be sent")
        wait_until_handled(it, traffic, timeout=900)

        say(f"claims are stalled for {options.stall_minutes:g} minutes under traffic")
        it.execute("insert into bench_switches values ('stalled')")
        runs_before = sum(it.runs("faults").values())
        stalled_until = time.monotonic() + 60 * options.stall_minutes
        while time.monotonic() < stalled_until:
            traffic.burst(10, 0)
            time.sleep(1)
        runs_while_stalled = sum(it.runs("faults").values()) - runs_before
        it.execute("delete from bench_switches")
        say(f"{runs_while_stalled} runs were created meanwhile; claims work again")
        wait_until_handled(it, traffic, timeout=900)

        seen = effects(it)
        kept = dead_letters(it)
        states = {dag_id: it.runs(dag_id) for dag_id in ("faults", "faults_fan_out", "faults_message")}
    result = {
        "sent": traffic.sent,
        "handled": len(set(seen) & traffic.good),
        "lost": len(traffic.good - set(seen)) + len(traffic.bad - kept),
        "twice": len(seen) - len(set(seen)),
        "dead_lettered": len(traffic.bad & kept),
        "planted_bad": len(traffic.bad),
        "kills": dict(kills),
        "runs_while_stalled": runs_while_stalled,
        "stalled_minutes": options.stall_minutes,
        "runs": states,
    }
    if options.requests:
        say("second part: requests, decisions and approvals")
        result["requests"] = faults_requests.run(options.rounds, options.requests)
    for name, value in result.items():
        print(f"{name:20} {value}")
    print(json.dumps(result))
    complete = all(kills[name] >= options.rounds for name in FAULTS_BY_NAME)
    complete &= not options.requests or faults_requests.is_good(result["requests"], options.rounds)
    return 0 if result["lost"] == result["twice"] == 0 and complete else 1


if __name__ == "__main__":
    sys.exit(main())
