"""`make bench-events`: compares the event lane with the provider's triggers and with two lower limits.

It measures each lane in turn: the latency of a single message (from the broker's timestamp until another session sees
its effect), and the rate of a burst.

- ours, per message: the two shapes of this project, with a row as effect.
- stock, shared stream: the two triggers of the Kafka provider, with the same effect. Messages that they lose or
  coalesce are counted.
- floor: a Dag of one task with the same effect, triggered through the REST API. It shows the time that Airflow needs.

With the example there are two more lanes: its own Dag (`alerts`; a burst is done when its outbox is empty), and the
same inbox, effect and outbox in processes without Airflow (`plain`, the second lower limit).

Then it measures with a long history, without the extra indexes of Airflow's database, with a listener, and under
sustained load. It prints tables and, as the last line, one JSON object.
"""

import argparse
import contextlib
import random
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from benchmarks import lanes, variants
from benchmarks.bench_stack import BenchStack, bench_stack, say
from benchmarks.history import add_history
from benchmarks.lanes import EffectLane, Lane
from benchmarks.results import print_result
from benchmarks.water import lanes as example_lanes  # example
from benchmarks.water import plain  # example
from benchmarks.water.sustained import sustained, with_receiver  # example
from include.streams.kafka.topics import create_topics

# The steps from a message of this project's lane to its effect, with the times that Airflow's metadata has recorded.
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

LANES: dict[str, Lane] = {
    **lanes.LANES,
    **example_lanes.LANES,  # example
}
PARTS = ["history", "listener"]
PARTS.insert(0, "sustained")  # example
RIVALS = ("stock", "shared stream")
# Measured again with a long history, and then without the extra indexes.
LANES_WITH_HISTORY = ("per message", "floor")
WITH_HISTORY = ", long history"
WITHOUT_INDEXES = ", long history, without indexes"
LANES_WITH_LISTENER = ["ours", "per message", "floor"]
LANES_WITH_LISTENER.append("alerts")  # example
WITH_LISTENER = ", listener"


def steps(bench: BenchStack, sent_at: float, seen_at: float) -> list[float]:
    """Seconds from the message to each of STEP_NAMES."""
    with bench.metadata.connect() as connection:
        row = connection.execute(text(STEPS), {"sent_at": sent_at}).one()
    return [moment.timestamp() - sent_at for moment in row] + [seen_at - sent_at]


@dataclass(frozen=True)
class Rounds:
    """How much is measured: bursts and single messages per lane, and the size of a burst."""

    singles: int
    bursts: int
    burst_sizes: Mapping[str, int]

    @property
    def few(self) -> "Rounds":
        """The rounds of lanes that are only measured for comparison."""
        return Rounds(-(-self.singles // 2), min(1, self.bursts), self.burst_sizes)


class Figures:
    """The measurements: {lane: [...]} of seconds for a single message, and of messages a second in a burst."""

    def __init__(self) -> None:
        self.latencies: dict[str, list[float]] = {}
        self.rates: dict[str, list[float]] = {}
        self.sent: dict[str, set[str]] = {lane: set() for lane in LANES}
        # Messages of the provider's triggers that no run had seen after a quiet time.
        self.left: dict[str, set[str]] = {lane: set() for lane in RIVALS}
        self.missed = 0
        self.ways: list[list[float]] = []

    def warm_up(self, bench: BenchStack, lanes: Iterable[str], prefix: str) -> None:
        for lane in lanes:
            self.single(bench, lane, f"{prefix}-{lane.replace(' ', '-')}")

    def single(self, bench: BenchStack, lane: str, number: str) -> tuple[float, float] | None:
        self.sent[lane].add(number)
        return LANES[lane].single(bench, number)

    def measure(self, bench: BenchStack, lanes: Sequence[str], rounds: Rounds, prefix: str, suffix: str = "") -> None:
        """In each round: singles, the lanes in turn, and a burst of each lane; then the same of each rival, alone.

        Lanes are named with `suffix` in the figures.
        """
        groups = [[lane for lane in lanes if lane not in RIVALS], *([lane] for lane in lanes if lane in RIVALS)]
        for n in range(rounds.bursts):
            for group in groups:
                with contextlib.ExitStack() as running:
                    if dag_id := LANES[group[0]].dag_id:
                        running.enter_context(bench.watching(dag_id))
                        self.warm_up(bench, group, f"{prefix}warm-{n}")
                    self._measure_group(bench, group, rounds, f"{prefix}{n}", suffix)
            say(f"round {n + 1} of {rounds.bursts}: " + _latest(self.rates, "/s"))

    def _measure_group(self, bench: BenchStack, lanes: Sequence[str], rounds: Rounds, prefix: str, suffix: str) -> None:
        for n in range(-(-rounds.singles // rounds.bursts)):
            for lane in lanes:
                # A random idle time, so that the message arrives at a random moment of all polling intervals.
                time.sleep(2 + random.random())
                times = self.single(bench, lane, f"{prefix}-single-{n}")
                if times is None:
                    self.missed += 1
                    continue
                self.latencies.setdefault(lane + suffix, []).append(times[1] - times[0])
                if lane == "ours" and not suffix:
                    self.ways.append(steps(bench, *times))
            say("single: " + _latest({lane: self.latencies.get(lane + suffix, []) for lane in lanes}, "s"))
        for lane in lanes:
            size = rounds.burst_sizes[lane]
            time.sleep(2)
            self.sent[lane] |= {f"{prefix}-burst-{i}" for i in range(size)}
            self.rates.setdefault(lane + suffix, []).append(LANES[lane].burst(bench, f"{prefix}-burst", size))
            if lane in RIVALS:
                self.left[lane] |= self.sent[lane] - set(LANES[lane].numbers(bench))

    def p50(self, lane: str) -> float:
        return statistics.median(self.latencies[lane]) if self.latencies.get(lane) else float("nan")

    def rate(self, lane: str) -> float:
        return statistics.median(self.rates[lane]) if self.rates.get(lane) else float("nan")


def rival_counts(bench: BenchStack, figures: Figures, lane: str) -> dict[str, int]:
    """What a provider's trigger lost and joined, after one more message: its events may wait for the next message."""
    way = LANES[lane]
    assert isinstance(way, EffectLane)
    assert way.dag_id is not None
    with bench.watching(way.dag_id):
        figures.single(bench, lane, "last")
        bench.wait_for_count(lambda: way.effects(bench), sys.maxsize, 60, quiet=way.quiet_seconds, pause=0.1)
    numbers = way.numbers(bench)
    waited = figures.left[lane] & set(numbers)
    name = lane.replace(" ", "_")
    return {
        f"{name}_lost": len(figures.sent[lane] - set(numbers)),
        f"{name}_joined": len(way.together(bench) | waited),
        f"{name}_left_for_the_next": len(waited),
        f"{name}_twice": len(numbers) - len(set(numbers)),
    }


def main() -> int:
    options = _options()
    # Bursts of runs are so long that one slow second of the machine hardly matters.
    sizes = {"stock": options.stock_burst_size, "per message": options.run_burst_size, "floor": options.run_burst_size}
    rounds = Rounds(options.singles, options.bursts, {lane: sizes.get(lane, options.burst_size) for lane in LANES})
    figures, result = Figures(), {}
    with bench_stack() as bench:
        create_topics([plain.PLAIN_TOPIC])  # example
        bench.wait_for_dags()
        running = contextlib.ExitStack()
        running.enter_context(plain.processes())  # example
        with running:
            say("warming up")
            figures.warm_up(bench, [lane for lane in LANES if lane not in RIVALS], "warm")
            figures.measure(bench, list(LANES), rounds, "")
            for lane in RIVALS:
                result |= rival_counts(bench, figures, lane)
            if "sustained" in options.parts:  # example
                result |= measure_sustained(bench, options.sustained)  # example
        if "history" in options.parts:
            say(f"adding {options.history:,} old keys and runs to the metadata, and as many messages to the inbox")
            add_history(bench, options.history)
            figures.warm_up(bench, LANES_WITH_HISTORY, "warm-old")
            figures.measure(bench, LANES_WITH_HISTORY, rounds, "old-", WITH_HISTORY)
            say("without the extra indexes of Airflow's database")
            variants.drop_indexes(bench)
            figures.measure(bench, LANES_WITH_HISTORY, rounds.few, "bare-", WITHOUT_INDEXES)
        if "listener" in options.parts:
            say("starting once more, with a listener")
            bench = variants.with_listener(bench)
            bench.wait_for_dags()
            figures.warm_up(bench, LANES_WITH_LISTENER, "warm-listener")
            figures.measure(bench, LANES_WITH_LISTENER, rounds.few, "listener-", WITH_LISTENER)
        numbers = {lane: way.numbers(bench) for lane, way in LANES.items()}
    result = summarize(figures, result, numbers, options)
    print_tables(figures)
    print_result("bench-events", result)
    return 0 if result["lost"] == result["twice"] == 0 else 1


# example: begin
def measure_sustained(bench: BenchStack, count: int) -> dict[str, Any]:
    """The example's Dag and the plain consumer with very many messages at once; the Dag also with a webhook."""
    say(f"sustained load: {count:,} messages at once")
    rate, undone = sustained(bench, LANES["alerts"], "sustained", count)
    plain_rate, plain_undone = sustained(bench, LANES["plain"], "plain", count)
    receiver_rate, receiver_undone, received = with_receiver(bench, count)
    return {
        "sustained_messages": count,
        "sustained_per_s": round(rate, 1),
        "sustained_plain_consumer_per_s": round(plain_rate, 1),
        "sustained_ratio_vs_plain_consumer": round(rate / plain_rate, 2),
        "sustained_with_receiver_per_s": round(receiver_rate, 1),
        "sustained_not_done_in_time": undone + receiver_undone,
        "sustained_plain_consumer_not_done_in_time": plain_undone,
        "sustained_receiver": received,
    }


# example: end
def summarize(
    figures: Figures, result: dict[str, Any], numbers: dict[str, list[str]], options: argparse.Namespace
) -> dict[str, Any]:
    ours = ["ours", "per message"]
    ours.append("alerts")  # example
    # Messages of the sustained load are counted there.
    wanted = {lane: [n for n in numbers[lane] if n in figures.sent[lane]] for lane in LANES}
    all_figures = {
        "burst_ratio_vs_stock": _ratio(figures.rate("ours"), figures.rate("stock"), 1),
        "burst_ratio_vs_shared_stream": _ratio(figures.rate("ours"), figures.rate("shared stream"), 1),
        # example: begin
        "burst_of_alerts_ratio_vs_shared_stream": _ratio(figures.rate("alerts"), figures.rate("shared stream"), 1),
        "burst_of_alerts_ratio_vs_plain_consumer": _ratio(figures.rate("alerts"), figures.rate("plain")),
        # example: end
        "single_p50_ratio_vs_floor": _ratio(figures.p50("ours"), figures.p50("floor")),
        "single_p50_of_alerts_ratio_vs_plain_consumer": _ratio(figures.p50("alerts"), figures.p50("plain")),  # example
    }
    for suffix, name in (
        ("", ""),
        (WITH_HISTORY, "_with_history"),
        (WITHOUT_INDEXES, "_without_indexes"),
        (WITH_LISTENER, "_with_listener"),
    ):
        if "per message" + suffix in figures.rates:
            all_figures |= per_message_ratios(figures, suffix, name)
    # example: begin
    if "sustained_per_s" in result:
        rate = result["sustained_per_s"]
        all_figures["sustained_ratio_vs_burst"] = _ratio(rate, figures.rate("alerts"))
    # example: end
    return all_figures | {
        "lost": sum(len(figures.sent[lane] - set(wanted[lane])) for lane in ours),
        "twice": sum(len(wanted[lane]) - len(set(wanted[lane])) for lane in ours),
        **result,
        "single_p50_seconds": {lane: round(figures.p50(lane), 3) for lane in figures.latencies},
        "burst_per_second": {lane: round(figures.rate(lane), 2) for lane in figures.rates},
        "burst_size": options.burst_size,
        "history": options.history if "history" in options.parts else 0,
        "singles_not_seen_in_20_s": figures.missed,
    }


def per_message_ratios(figures: Figures, suffix: str, name: str) -> dict[str, float | None]:
    """One Dag run per message, compared with runs triggered through the REST API."""
    ours, floor = "per message" + suffix, "floor" + suffix
    return {
        f"per_message_ratio_vs_floor{name}": _ratio(figures.rate(ours), figures.rate(floor)),
        f"per_message_single_p50_ratio_vs_floor{name}": _ratio(figures.p50(ours), figures.p50(floor)),
    }


def print_tables(figures: Figures) -> None:
    print(f"\n{'lane':45}{'single p50 s':>14}{'best':>8}{'worst':>8}{'burst /s':>12}")
    for lane, values in figures.latencies.items():
        print(f"{lane:45}{figures.p50(lane):14.2f}{min(values):8.2f}{max(values):8.2f}{figures.rate(lane):12.1f}")
    if figures.ways:
        print("\na single message of ours, p50 seconds until: ", end="")
        medians = [statistics.median(seconds) for seconds in zip(*figures.ways, strict=True)]
        print(", ".join(f"{name} {seconds:.2f}" for name, seconds in zip(STEP_NAMES, medians, strict=True)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events", description=__doc__)
    for name, default, what in (
        ("singles", 10, "single messages a lane"),
        ("bursts", 3, "bursts a lane"),
        ("burst-size", 1_000, "messages in a burst"),
        ("run-burst-size", 120, "in one that is a run for each"),
        ("stock-burst-size", 20, "in one of stock"),
        ("history", 300_000, "old keys and runs for the part `history`"),
        ("sustained", 100_000, "messages at once in the part `sustained`"),  # example
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: %(default)s)")
    parser.add_argument(
        "--parts", nargs="*", choices=PARTS, default=PARTS, help="what follows the comparison (default: all)"
    )
    return parser.parse_args()


def _ratio(one: float, other: float, digits: int = 2) -> float | None:
    """The ratio; None (a JSON null) when one of the two was not measured."""
    ratio = one / other if other else float("nan")
    return None if ratio != ratio else round(ratio, digits)


def _latest(values: dict[str, list[float]], unit: str) -> str:
    return ", ".join(f"{lane} {numbers[-1]:.2f} {unit}" for lane, numbers in values.items() if numbers)


if __name__ == "__main__":
    sys.exit(main())
