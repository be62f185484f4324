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

from sqlalchemy import text

from benchmarks.consumers import LAG_TOPIC, STOCK_TOPIC
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

LANES = {"ours": LAG_TOPIC.name, "stock": STOCK_TOPIC.name, "floor": "floor"}


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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events", description=__doc__)
    parser.add_argument("--singles", type=int, default=15, help="single messages a lane (default: %(default)s)")
    parser.add_argument("--bursts", type=int, default=3, help="bursts a lane (default: %(default)s)")
    parser.add_argument(
        "--burst-size", type=int, default=1000, help="messages in a burst of ours (default: %(default)s)"
    )
    parser.add_argument("--stock-burst-size", type=int, default=30, help="in one of the stock lane and the floor")
    options = parser.parse_args()
    latencies: dict[str, list[float]] = {lane: [] for lane in LANES}
    rates: dict[str, list[float]] = {lane: [] for lane in LANES}
    sent = dict.fromkeys(LANES, 0)
    ways: list[list[float]] = []
    missed = 0
    with stand() as it:
        it.wait_until(lambda: len(it.request("GET", "/dags")["dags"]) == 4, "the Dag files to be read", 60)
        say("warming up")
        for lane in LANES:
            single(it, lane, f"warm-{lane}")
            sent[lane] += 1
        for n in range(options.singles):
            for lane in LANES:
                # Idle, as between events of a day; at a random moment of everybody's intervals.
                time.sleep(2 + random.random())
                times = single(it, lane, f"single-{n}")
                sent[lane] += 1
                if times is None:
                    missed += 1
                    continue
                latencies[lane].append(times[1] - times[0])
                if lane == "ours":
                    ways.append(steps(it, *times))
            say(f"single {n + 1}/{options.singles}: " + _latest(latencies, "s"))
        for n in range(options.bursts):
            for lane in LANES:
                size = options.burst_size if lane == "ours" else options.stock_burst_size
                time.sleep(2)
                rates[lane].append(burst(it, lane, f"burst-{n}", size))
                sent[lane] += size
            say(f"burst {n + 1}/{options.bursts}: " + _latest(rates, "/s"))
        numbers = [
            number for (number,) in it.query("select number from bench_effects where lane = :l", l=LANES["ours"])
        ]
        stock_effects = it.effects(LANES["stock"])
    p50 = {lane: statistics.median(values) for lane, values in latencies.items()}
    rate = {lane: statistics.median(values) for lane, values in rates.items()}
    print(f"\n{'lane':8}{'single p50 s':>14}{'best':>8}{'worst':>8}{'burst /s':>12}")
    for lane, values in latencies.items():
        print(f"{lane:8}{p50[lane]:14.2f}{min(values):8.2f}{max(values):8.2f}{rate[lane]:12.1f}")
    print("\na single message of ours, p50 seconds until: ", end="")
    medians = [statistics.median(seconds) for seconds in zip(*ways, strict=True)]
    print(", ".join(f"{name} {seconds:.2f}" for name, seconds in zip(STEP_NAMES, medians, strict=True)))
    result = {
        "burst_ratio_vs_stock": round(rate["ours"] / rate["stock"], 1),
        "single_p50_ratio_vs_floor": round(p50["ours"] / p50["floor"], 2),
        "lost": sent["ours"] - len(set(numbers)),
        "twice": len(numbers) - len(set(numbers)),
        "single_p50_seconds": {lane: round(seconds, 3) for lane, seconds in p50.items()},
        "burst_per_second": {lane: round(r, 2) for lane, r in rate.items()},
        "stock_lost": sent["stock"] - stock_effects,
        "singles_not_seen_in_20_s": missed,
    }
    print(json.dumps(result))
    return 0 if result["lost"] == result["twice"] == 0 else 1


def _latest(values: dict[str, list[float]], unit: str) -> str:
    return ", ".join(f"{lane} {v[-1]:.2f} {unit}" for lane, v in values.items() if v)


if __name__ == "__main__":
    sys.exit(main())
