"""A noisy neighbor: how long a leak waits for its alert while thousands of service requests wait for runs of their own.

Both topics share the scheduler and the executor. Leaks are handled in chunks, requests in one Dag run per message.
"""

import argparse
import random
import statistics
import sys
import time

from benchmarks.bench_stack import BenchStack, bench_stack, say
from benchmarks.results import print_result
from benchmarks.water.faults_requests import DAG_IDS, HARMLESS, TRIAGE, service_request
from benchmarks.water.lanes import AlertLane
from include.water.topics import LEAKS_DETECTED, SERVICE_REQUESTS
from stack.stack import PROJECT

LEAKS = AlertLane(LEAKS_DETECTED, "noisy")


def measure(bench: BenchStack, prefix: str, leaks: int) -> list[float]:
    """Send leaks one after the other; returns the seconds from each leak's record to its alert.

    Raises:
        TimeoutError: A leak had no alert after 20 s.
    """
    seconds = []
    for n in range(leaks):
        # A random pause, so that the message arrives at a random moment of all polling intervals.
        time.sleep(1 + random.random())
        times = LEAKS.single(bench, f"{prefix}-{n}")
        if times is None:
            raise TimeoutError(f"leak {prefix}-{n} had no alert after 20 s")
        seconds.append(times[1] - times[0])
    say(f"{prefix}: median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s")
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.water.noisy", description=__doc__)
    parser.add_argument("--requests", type=int, default=3_000, help="requests sent at once (default: %(default)s)")
    parser.add_argument("--leaks", type=int, default=40, help="leaks measured in each state (default: %(default)s)")
    options = parser.parse_args()
    with bench_stack(dags=PROJECT / "dags") as bench:
        # This stack has no feed, no object store and no Kafka Connect.
        bench.run_only(DAG_IDS, PROJECT / "dags")
        measure(bench, "warm", 5)
        alone = measure(bench, "alone", options.leaks)
        requests = [service_request(HARMLESS.format(n=n)) for n in range(options.requests)]
        bench.send(SERVICE_REQUESTS.name, [SERVICE_REQUESTS.serialize(request)[1] for request in requests])
        bench.wait_until(lambda: bench.runs(TRIAGE).get("running", 0) > 0, "runs for requests", 120)
        beside = measure(bench, "beside", options.leaks)
        handled = bench.runs(TRIAGE).get("success", 0)
        if handled >= options.requests:
            raise RuntimeError(f"all {handled} requests were handled before the last leak: send more with --requests")
    print_result(
        "bench-noisy",
        {
            "requests": options.requests,
            "requests_handled_meanwhile": handled,
            "alert_alone_p50_s": round(statistics.median(alone), 2),
            "alert_beside_p50_s": round(statistics.median(beside), 2),
            "alert_beside_longest_s": round(max(beside), 2),
            "ratio": round(statistics.median(beside) / statistics.median(alone), 2),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
