"""`make faults ARGS="--lane shared-stream"`: the faults of `make faults`, fewer, against the provider's shared stream.

Its Dag handles every event of its run, with the effect and the retries of our lane. What no run has seen after a quiet
time is counted; then one more message is sent, because events may wait for the next one, and it is counted again.
Prints a table and, as its last line, one JSON object. The exit code only says whether every fault hit.
"""

import collections
import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Mapping

from benchmarks.consumers import SHARED_STREAM_TOPIC, Probe
from benchmarks.kills import kill_task, kill_task_at
from benchmarks.results import print_result
from benchmarks.stand import DAGS, Stand, say, stand
from include.streams.contracts.breaking import broken

DAG_ID = "bench_shared_stream"
BURST, BAD_IN_A_BURST = 150, 2
# Longer than the longest delay between two retries, and than the triggerer needs to come back.
QUIET_SECONDS = 90.0
# Faults of our lane that hit the rival as they are, and those that hit its own task.
SHARED_FAULTS = ("triggerer", "scheduler", "broker", "database connections")
OWN_FAULTS: dict[str, Callable[[Stand], bool]] = {
    "handling task": lambda it: kill_task(it, DAG_ID, "handle"),
    "handling task before commit": lambda it: kill_task_at(it, "bench_effects", DAG_ID, "handle"),
}


class Sender:
    """Sends bursts in the background, and knows what the broker has acknowledged."""

    def __init__(self, it: Stand) -> None:
        self.it = it
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
        self.it.send(SHARED_STREAM_TOPIC.name, values)
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


def main(rounds: int, faults_of_ours: Mapping[str, Callable[[Stand], bool]]) -> int:
    """Run everything, print the figures; the exit code of the command."""
    faults = {**{name: faults_of_ours[name] for name in SHARED_FAULTS}, **OWN_FAULTS}
    kills: collections.Counter[str] = collections.Counter()
    environment = {
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
        # Airflow's default: should its trigger have to be registered once more, that happens with the file's parsing.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
    }
    folder = DAGS / "shared_stream"
    with stand(environment, dags=folder) as it, contextlib.ExitStack() as running:
        it.wait_for_dags(folder)
        running.enter_context(it.watching(DAG_ID))
        sender = Sender(it)
        sender.start()
        for n in range(rounds):
            for name, fault in faults.items():
                time.sleep(random.uniform(3, 8))
                kills[name] += fault(it)
                say(f"round {n + 1}: {name} hit {kills[name]} times; {len(sender.good)} sent, runs {it.runs(DAG_ID)}")
        sender.stop()
        wait_until_quiet(it, sender.good)
        before_the_next = set(seen(it))
        say(f"{len(sender.good - before_the_next)} were not seen; sending one more message")
        sender.send(1, 0)
        wait_until_quiet(it, sender.good)
        numbers = seen(it)
        together = {number for number, messages in numbers.items() if min(messages) > 1}
        kept = {value for _, value in it.records(SHARED_STREAM_TOPIC.dead_letter_name, "")}
        runs = it.runs(DAG_ID)
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


def seen(it: Stand) -> dict[str, list[int]]:
    """{number: how many messages each run had that handled it}."""
    found: dict[str, list[int]] = {}
    query = "select number, messages_of_run from bench_effects where lane = :lane"
    for number, messages in it.query(query, lane=SHARED_STREAM_TOPIC.name):
        found.setdefault(number, []).append(messages)
    return found


def wait_until_quiet(it: Stand, sent: set[str], timeout: float = 1800) -> None:
    """Until all are handled, or nothing has been for a while and no run is left."""
    deadline = time.monotonic() + timeout
    count, changed_at = -1, time.monotonic()
    while time.monotonic() < deadline:
        found = seen(it)
        if sent <= set(found):
            return
        if (now := sum(map(len, found.values()))) != count:
            count, changed_at = now, time.monotonic()
            say(f"{len(sent & set(found))} of {len(sent)} were seen")
        runs = it.runs(DAG_ID)
        if time.monotonic() - changed_at > QUIET_SECONDS and not runs.keys() & {"queued", "running"}:
            return
        time.sleep(5)
    say(f"gave up after {timeout:.0f} s")
