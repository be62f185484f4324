"""`make bench-events`: the event lane beside the stock trigger and beside the floor.

In one run, alternating: the latency of a single message (the broker's timestamp until its effect is visible to
somebody else) and a burst. The floor is a Dag of one task with the same effect, triggered through the REST API: what
Airflow itself takes. Prints a table and, as its last line, one JSON object.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterable

from sqlalchemy import text

from benchmarks.consumers import LAG_TOPIC, MESSAGES_TOPIC, STOCK_TOPIC
from benchmarks.history import add_history
from benchmarks.stand import Stand, say, stand

# From a message of ours to its effect; read from Airflow's metadata, so each is the time somebody else recorded.
STEPS = """
select asset_event.timestamp, dag_run.queued_at, dag_run.start_date, ti.queued_dttm, ti.start_date
from dag_run
join task_instance ti on ti.dag_id = dag_run.dag_id and ti.run_id = dag_run.run_id and ti.task_id = 'claim'
join dagrun_asset_event on dagrun_asset_event.dag_run_id = dag_run.id
join asset_event on asset_event.id = dagrun_asset_event.event_id
where dag_run.dag_id = 'bench_lag' and asset_event.timestamp > to_timestamp(:sent_at)
order by asset_event.timestamp limit 1
"""
STEP_NAMES = ("event stored", "run created", "run started", "task queued", "task started", "effect seen")

LANES = {"ours": LAG_TOPIC.name, "per message": MESSAGES_TOPIC.name, "stock": STOCK_TOPIC.name, "floor": "floor"}
# Lanes that are measured once more beside a long history.
LANES_WITH_HISTORY = ("per message", "floor")
WITH_HISTORY = ", long history"


def value(number: str) -> bytes:
    return json.dumps({"version": 1, "number": number}).encode()


def single(it: Stand, lane: str, number: str) -> tuple[float, float] | None:
    """When the message was sent and when its effect was seen; None when it was not within 20 s."""
    name = LANES[lane]
    before = it.effects(name)
    if lane == "floor":
        sent_at = time.time()
        trigger_floor(it, number)
    else:
        (sent_at,) = it.send(name, [value(number)])
    seen_at = it.wait_for_effects(name, before + 1, timeout=20)
    return (sent_at, seen_at) if it.effects(name) > before else None


def steps(it: Stand, sent_at: float, seen_at: float) -> list[float]:
    """Seconds from the message to each of STEP_NAMES."""
    with it.metadata.connect() as connection:
        row = connection.execute(text(STEPS), {"sent_at": sent_at}).one()
    return [moment.timestamp() - sent_at for moment in row] + [seen_at - sent_at]


def trigger_floor(it: Stand, number: str) -> None:
    it.request("POST", "/dags/bench_floor/dagRuns", {"logical_date": None, "conf": {"number": number}})


def burst(it: Stand, lane: str, prefix: str, count: int) -> float:
    """Effects a second, from the first message sent to the last effect seen."""
    name = LANES[lane]
    before = it.effects(name)
    numbers = [f"{prefix}-{n}" for n in range(count)]
    if lane == "floor":
        started = time.time()
        for number in numbers:
            trigger_floor(it, number)
    else:
        started = min(it.send(name, [value(number) for number in numbers]))
    # The stock trigger strands messages: what has not come for 15 s is not waited for.
    ended = it.wait_for_effects(name, before + count, timeout=300, quiet=15 if lane == "stock" else None)
    return (it.effects(name) - before) / (ended - started)


class Figures:
    """What was measured: {lane: [...]} of seconds for a single message, and of messages a second in a burst."""

    def __init__(self) -> None:
        self.latencies: dict[str, list[float]] = {}
        self.rates: dict[str, list[float]] = {}
        self.sent = dict.fromkeys(LANES, 0)
        self.missed = 0
        self.ways: list[list[float]] = []

    def measure(self, it: Stand, lanes: Iterable[str], options: argparse.Namespace, prefix: str, suffix: str) -> None:
        """Singles and bursts, the lanes in turn; lanes are named with `suffix` in the figures."""
        # Bursts of runs are long enough that one slow second of the machine does not decide.
        runs = options.run_burst_size
        sizes = {"ours": options.burst_size, "stock": options.stock_burst_size, "per message": runs, "floor": runs}
        for n in range(options.singles):
            for lane in lanes:
                # Idle, as between events of a day; at a random moment of everybody's intervals.
                time.sleep(2 + random.random())
                times = single(it, lane, f"{prefix}single-{n}")
                self.sent[lane] += 1
                if times is None:
                    self.missed += 1
                    continue
                self.latencies.setdefault(lane + suffix, []).append(times[1] - times[0])
                if lane == "ours":
                    self.ways.append(steps(it, *times))
            say(f"single {n + 1}/{options.singles}: " + _latest(self.latencies, "s"))
        for n in range(options.bursts):
            for lane in lanes:
                size = sizes[lane]
                time.sleep(2)
                self.rates.setdefault(lane + suffix, []).append(burst(it, lane, f"{prefix}burst-{n}", size))
                self.sent[lane] += size
            say(f"burst {n + 1}/{options.bursts}: " + _latest(self.rates, "/s"))

    def p50(self, lane: str) -> float:
        return statistics.median(self.latencies[lane])

    def rate(self, lane: str) -> float:
        return statistics.median(self.rates[lane])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events", description=__doc__)
    parser.add_argument("--singles", type=int, default=15, help="single messages a lane (default: %(default)s)")
    parser.add_argument("--bursts", type=int, default=3, help="bursts a lane (default: %(default)s)")
    parser.add_argument(
        "--burst-size", type=int, default=1000, help="messages in a burst of ours (default: %(default)s)"
    )
    parser.add_argument(
        "--run-burst-size", type=int, default=160, help="in one that is a run for each (default: %(default)s)"
    )
    parser.add_argument("--stock-burst-size", type=int, default=40, help="in one of stock (default: %(default)s)")
    parser.add_argument(
        "--history", type=int, default=300_000, help="old keys and runs for the second part (default: %(default)s)"
    )
    options = parser.parse_args()
    figures = Figures()
    with stand() as it:
        it.wait_for_dags()
        say("warming up")
        for lane in LANES:
            single(it, lane, f"warm-{lane}")
            figures.sent[lane] += 1
        figures.measure(it, LANES, options, "", "")
        if options.history:
            say(f"adding {options.history:,} old keys and runs to the metadata, and as many messages to the inbox")
            add_history(it, options.history)
            for lane in LANES_WITH_HISTORY:
                single(it, lane, f"warm-old-{lane}")
                figures.sent[lane] += 1
            figures.measure(it, LANES_WITH_HISTORY, options, "old-", WITH_HISTORY)
        found = {
            lane: [n for (n,) in it.query("select number from bench_effects where lane = :l", l=name)]
            for lane, name in LANES.items()
        }
    print(f"\n{'lane':30}{'single p50 s':>14}{'best':>8}{'worst':>8}{'burst /s':>12}")
    for lane, values in figures.latencies.items():
        print(f"{lane:30}{figures.p50(lane):14.2f}{min(values):8.2f}{max(values):8.2f}{figures.rate(lane):12.1f}")
    print("\na single message of ours, p50 seconds until: ", end="")
    medians = [statistics.median(seconds) for seconds in zip(*figures.ways, strict=True)]
    print(", ".join(f"{name} {seconds:.2f}" for name, seconds in zip(STEP_NAMES, medians, strict=True)))
    ours = [lane for lane in LANES if lane in ("ours", "per message")]
    result = {
        "burst_ratio_vs_stock": round(figures.rate("ours") / figures.rate("stock"), 1),
        "single_p50_ratio_vs_floor": round(figures.p50("ours") / figures.p50("floor"), 2),
        **per_message_ratios(figures, "", ""),
        **(per_message_ratios(figures, WITH_HISTORY, "_with_history") if options.history else {}),
        "lost": sum(figures.sent[lane] - len(set(found[lane])) for lane in ours),
        "twice": sum(len(found[lane]) - len(set(found[lane])) for lane in ours),
        "single_p50_seconds": {lane: round(figures.p50(lane), 3) for lane in figures.latencies},
        "burst_per_second": {lane: round(figures.rate(lane), 2) for lane in figures.rates},
        "history": options.history,
        "stock_lost": figures.sent["stock"] - len(set(found["stock"])),
        "singles_not_seen_in_20_s": figures.missed,
    }
    print(json.dumps(result))
    return 0 if result["lost"] == result["twice"] == 0 else 1


def per_message_ratios(figures: Figures, suffix: str, name: str) -> dict[str, float]:
    """One Dag run per message beside runs triggered through the REST API."""
    ours, floor = "per message" + suffix, "floor" + suffix
    return {
        f"per_message_ratio_vs_floor{name}": round(figures.rate(ours) / figures.rate(floor), 2),
        f"per_message_single_p50_ratio_vs_floor{name}": round(figures.p50(ours) / figures.p50(floor), 2),
    }


def _latest(values: dict[str, list[float]], unit: str) -> str:
    return ", ".join(f"{lane} {numbers[-1]:.2f} {unit}" for lane, numbers in values.items() if numbers)


if __name__ == "__main__":
    sys.exit(main())
