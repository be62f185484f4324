"""`make faults ARGS="--lane shared-stream"`: some faults of `make faults` against the provider's shared stream.

Its Dag handles every event of its run, with the effect and the retries of this project's lane. Messages that no run has
seen after a quiet time are counted. Then one more message is sent, because events may wait for the next message, and
the messages are counted again. Prints a table and, as the last line, one JSON object. The exit code only says whether
every fault hit.
"""

import collections
import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Mapping

from benchmarks.bench_stack import DAGS, BenchStack, bench_stack, say
from benchmarks.consumers import SHARED_STREAM_TOPIC, Probe
from benchmarks.kills import kill_task, kill_task_at
from benchmarks.results import print_result
from include.streams.contracts.breaking import broken

DAG_ID = "bench_shared_stream"
BURST, BAD_IN_A_BURST = 150, 2
# Longer than the longest delay between two retries, and longer than the restart of the triggerer.
QUIET_SECONDS = 90.0
# Faults that are the same as for this project's lane, and faults that hit the shared stream's own task.
SHARED_FAULTS = ("triggerer", "scheduler", "broker", "database connections")
OWN_FAULTS: dict[str, Callable[[BenchStack], bool]] = {
    "handling task": lambda bench: kill_task(bench, DAG_ID, "handle"),
    "handling task before commit": lambda bench: kill_task_at(bench, "bench_effects", DAG_ID, "handle"),
}


class Sender:
    """Sends bursts in the background, and records the messages that the broker has acknowledged."""

    def __init__(self, bench: BenchStack) -> None:
        self.bench = bench
        self.good: set[str] = set()
        self.bad: set[bytes] = set()
        self._count = itertools.count()
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Raises what the sending raised."""
        self._stopped.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def send(self, good: int, bad: int) -> None:
        numbers = [str(next(self._count)) for _ in range(good)]
        spoiled = [self._spoilt(f"bad-{next(self._count)}") for _ in range(bad)]
        values = [Probe(version=1, number=number).model_dump_json().encode() for number in numbers] + spoiled
        random.shuffle(values)
        self.bench.send(SHARED_STREAM_TOPIC.name, values)
        self.good |= set(numbers)
        self.bad |= set(spoiled)

    @staticmethod
    def _spoilt(number: str) -> bytes:
        ways = broken(SHARED_STREAM_TOPIC, Probe(version=1, number=number)).values()
        return random.choice([value for value in ways if value is not None and number.encode() in value])

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                self.send(BURST, BAD_IN_A_BURST)
                self._stopped.wait(10)
        except BaseException as error:
            self._failure = error


def main(rounds: int, faults_of_ours: Mapping[str, Callable[[BenchStack], bool]]) -> int:
    """Run everything, print the figures; the exit code of the command."""
    faults = {**{name: faults_of_ours[name] for name in SHARED_FAULTS}, **OWN_FAULTS}
    kills: collections.Counter[str] = collections.Counter()
    environment = {
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
        # Airflow's default: a trigger that is lost is registered again when its Dag file is parsed.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
    }
    folder = DAGS / "shared_stream"
    with bench_stack(environment, dags=folder) as bench, contextlib.ExitStack() as running:
        bench.wait_for_dags(folder)
        running.enter_context(bench.watching(DAG_ID))
        sender = Sender(bench)
        sender.start()
        for n in range(rounds):
            for name, fault in faults.items():
                time.sleep(random.uniform(3, 8))
                kills[name] += fault(bench)
                say(
                    f"round {n + 1}: {name} hit {kills[name]} times; {len(sender.good)} sent, runs {bench.runs(DAG_ID)}"
                )
        sender.stop()
        wait_until_quiet(bench, sender.good)
        before_the_next = set(seen(bench))
        say(f"{len(sender.good - before_the_next)} were not seen; sending one more message")
        sender.send(1, 0)
        wait_until_quiet(bench, sender.good)
        numbers = seen(bench)
        together = {number for number, messages in numbers.items() if min(messages) > 1}
        kept = {value for _, value in bench.records(SHARED_STREAM_TOPIC.dead_letter_name, "")}
        runs = bench.runs(DAG_ID)
    result = {
        "lane": "shared-stream",
        "sent": len(sender.good) + len(sender.bad),
        "handled": len(sender.good & set(numbers)),
        "lost": len(sender.good - set(numbers)) + len(sender.bad - kept),
        "lost_good": len(sender.good - set(numbers)),
        "lost_bad": len(sender.bad - kept),
        "twice": sum(len(messages) - 1 for messages in numbers.values()),
        "joined": len(together & sender.good),
        "left_for_the_next": len(sender.good & set(numbers) - before_the_next) - 1,
        "dead_lettered": len(sender.bad & kept),
        "planted_bad": len(sender.bad),
        "kills": dict(kills),
        "runs": runs,
    }
    for name, value in result.items():
        print(f"{name:20} {value}")
    print_result("faults", result)
    return 0 if all(kills[name] >= rounds for name in faults) else 1


def seen(bench: BenchStack) -> dict[str, list[int]]:
    """{number: [the number of messages of each run that handled it]}."""
    handled: dict[str, list[int]] = {}
    query = "select number, messages_of_run from bench_effects where lane = :lane"
    for number, messages in bench.query(query, lane=SHARED_STREAM_TOPIC.name):
        handled.setdefault(number, []).append(messages)
    return handled


def wait_until_quiet(bench: BenchStack, sent: set[str], timeout: float = 1800) -> None:
    """Wait until all messages are handled, or until none was handled for some time and no run is left."""
    deadline = time.monotonic() + timeout
    count, changed_at = -1, time.monotonic()
    while time.monotonic() < deadline:
        handled = seen(bench)
        if sent <= set(handled):
            return
        if (now := sum(map(len, handled.values()))) != count:
            count, changed_at = now, time.monotonic()
            say(f"{len(sent & set(handled))} of {len(sent)} were seen")
        runs = bench.runs(DAG_ID)
        if time.monotonic() - changed_at > QUIET_SECONDS and not runs.keys() & {"queued", "running"}:
            return
        time.sleep(5)
    say(f"gave up after {timeout:.0f} s")
