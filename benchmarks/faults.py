"""`make faults`: faults of all kinds under load; then lost messages and repeated effects are counted.

Messages are sent in bursts, to a chunked consumer and to a consumer with one Dag run per message: good messages, bad
messages, and odd records of every kind that a broker accepts. Three parts on one stack:

1. Faults that kill no process of the project: a dead-letter topic refuses, the webhook is down, a foreign member joins
   each consumer group, committed offsets are moved to the end, a transaction stays open.
2. kill -9 of the triggerer, the scheduler, claiming tasks, handling tasks (tasks of a single message right before and
   right after their transaction) and the broker; ended and silent database connections; everything at once.
3. All claims fail under traffic. The Dag runs that are created meanwhile are counted.

Afterwards every message is looked up: good messages among the effects (a table without a unique key), bad messages in
the dead-letter topics, by topic, partition and offset. `longest_wait_seconds` is the longest time that a good message
waited between broker and effect in parts 1 and 2, without partitions that a fault itself affected;
`longest_wait_without_kills_seconds` is the same for part 1, `longest_waits` the same by fault and topic. With the
example, its requests and approvals are tested under faults of their own afterwards. Prints a table and, as the last
line, one JSON object.
"""

import argparse
import collections
import contextlib
import json
import random
import sys
import time
from collections.abc import Callable

from sqlalchemy.exc import OperationalError

from benchmarks import faults_outside, faults_shared_stream
from benchmarks.bench_stack import BenchStack, bench_stack, say
from benchmarks.consumers import FAULTS, FAULTS_MESSAGES, FAULTS_MESSAGES_TOPIC, FAULTS_TOPICS, FAULTS_WEBHOOK
from benchmarks.faults_traffic import BURST, Traffic
from benchmarks.kills import kill_program, kill_task, kill_task_at
from benchmarks.receivers import Webhook
from benchmarks.results import print_result
from benchmarks.water import faults_requests  # example

CONSUMERS = [FAULTS.name, FAULTS_MESSAGES.name]
ALL_TOPICS = (*FAULTS_TOPICS, FAULTS_MESSAGES_TOPIC)
# Part 1: steady traffic, far below the capacity of two cores, so that a message waits because of a fault only.
QUIET_BURST, QUIET_PAUSE_SECONDS = 60, 3.0
FAULT_SECONDS = 60.0
POWER_CUT = "everything at once"
WITHOUT_KILLS, WITH_KILLS = "without kills", "with kills"


def end_database_connections(bench: BenchStack) -> bool:
    """Like a failover: end every connection to the operational database except the benchmark's, during claims."""
    deadline = time.monotonic() + 60
    query = (
        "select count(pg_terminate_backend(pid)) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()"
    )
    while time.monotonic() < deadline:
        if bench.query(query)[0][0]:
            return True
        time.sleep(0.01)
    return False


FAULTS_BY_NAME: dict[str, Callable[[BenchStack], bool]] = {
    "triggerer": lambda bench: kill_program(bench, "triggerer"),
    "scheduler": lambda bench: kill_program(bench, "scheduler"),
    "claim task": lambda bench: kill_task(bench, "faults", "claim"),
    "handling task": lambda bench: kill_task(bench, "faults", "handle"),
    "fan-out task": lambda bench: kill_task(bench, "faults_fan_out", "claim"),
    # The effect's own table, and the one that is written when the effect's transaction is committed.
    "message task before commit": lambda bench: kill_task_at(bench, "bench_effects", "faults_message", "handle"),
    "message task after commit": lambda bench: kill_task_at(bench, "handled_ranges", "faults_message", "handle"),
    "broker": lambda bench: kill_program(bench, "kafka"),
    "database connections": end_database_connections,
}


def effects(bench: BenchStack) -> list[str]:
    names = [topic.name for topic in ALL_TOPICS]
    return [n for (n,) in bench.query("select number from bench_effects where lane = any(:names)", names=names)]


def wait_until_handled(bench: BenchStack, traffic: Traffic, timeout: float) -> None:
    """Wait until every message is handled, every claim closed and every outbox row delivered, or time is up."""
    deadline = time.monotonic() + timeout
    last = ""
    while time.monotonic() < deadline:
        try:
            ((done,),) = bench.query("select count(*) from inbox where consumer = any(:names)", names=CONSUMERS)
            ((opened,),) = bench.query(
                "select count(*) from claims where consumer = any(:names) and closed_at is null", names=CONSUMERS
            )
            ((pending,),) = bench.query("select count(*) from outbox where state = 'pending'")
        except OperationalError:
            time.sleep(1)
            continue
        if done >= traffic.sent and not opened and not pending:
            return
        line = f"handled {done} of {traffic.sent}, {opened} claims open, {pending} deliveries pending"
        if line != last:
            say(line)
            last = line
        time.sleep(2)


def without_kills(bench: BenchStack, traffic: Traffic, webhook: Webhook, minutes: float) -> list[str]:
    """Part 1: each fault for some time, all of them while the webhook is down; returns the names of the faults."""
    traffic.part = WITHOUT_KILLS
    others: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
        "refused dead letters": lambda: faults_outside.refused_dead_letters(bench),
        "foreign members": lambda: faults_outside.foreign_members(bench),
        "moved offsets": lambda: faults_outside.moved_offsets(bench),
        "open transaction": lambda: faults_outside.open_transaction(bench, traffic),
    }
    away_until = time.monotonic() + 60 * minutes
    seconds = min(FAULT_SECONDS, 60 * minutes / len(others))
    with traffic.steady(QUIET_BURST, QUIET_PAUSE_SECONDS):
        with faults_outside.absent_webhook(webhook):
            say(f"the webhook is down for {minutes:g} minutes")
            for name, fault in others.items():
                say(f"{name} for {seconds:.0f} s; {traffic.sent} sent")
                traffic.fault = name
                with fault():
                    time.sleep(seconds)
            traffic.fault = "absent webhook"
            time.sleep(max(0.0, away_until - time.monotonic()))
        say("the webhook is back")
        time.sleep(10)
    wait_until_handled(bench, traffic, timeout=900)
    return ["absent webhook", *others]


def with_kills(bench: BenchStack, traffic: Traffic, options: argparse.Namespace) -> collections.Counter[str]:
    """Part 2: kills; returns {fault: how often it hit}."""
    traffic.part, traffic.fault = WITH_KILLS, "none"
    hits: collections.Counter[str] = collections.Counter()
    faults = FAULTS_BY_NAME
    if faults_outside.can_drop_packets():
        faults = {**faults, "silent database connections": faults_outside.silent_database}
    else:
        say("not run: silent database connections (dropping packets needs root and iptables)")
    faults = {**faults, POWER_CUT: faults_outside.power_cut}
    total = traffic.sent + options.messages
    # Messages are spread over the faults, so that each fault hits a busy lane.
    pause = max(1.0, options.rounds * len(faults) * 12 / (options.messages / BURST))
    with traffic.steady(BURST, pause, until=total) as sending:
        for n in range(options.rounds):
            for name, fault in faults.items():
                time.sleep(random.uniform(1, 4))
                traffic.fault = name
                hits[name] += fault(bench)
                say(f"round {n + 1}: {name} hit {hits[name]} times; {traffic.sent} sent, runs {bench.runs('faults')}")
        if sending.is_alive():
            say("waiting for the rest to be sent")
    wait_until_handled(bench, traffic, timeout=900)
    return hits


def stall(bench: BenchStack, traffic: Traffic, minutes: float) -> int:
    """Part 3: failing claims; returns how many runs were created."""
    traffic.part = "stalled"
    say(f"claims are stalled for {minutes:g} minutes under traffic")
    bench.execute("insert into bench_switches values ('stalled')")
    runs_before = sum(bench.runs("faults").values())
    stalled_until = time.monotonic() + 60 * minutes
    while time.monotonic() < stalled_until:
        traffic.burst(10, 0)
        time.sleep(1)
    created = sum(bench.runs("faults").values()) - runs_before
    bench.execute("delete from bench_switches")
    say(f"{created} runs were created meanwhile; claims work again")
    wait_until_handled(bench, traffic, timeout=900)
    return created


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=10_000, help="to send under kills (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each kill hits (default: %(default)s)")
    parser.add_argument("--webhook-minutes", type=float, default=10, help="of part 1 (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=150, help="of the example (default: %(default)s)")  # example
    parser.add_argument("--parts", default="1,2,3", help="some of %(default)s")
    parser.add_argument("--stall-minutes", type=float, default=10, help="of claims that fail (default: %(default)s)")
    parser.add_argument("--lane", choices=("ours", "shared-stream"), default="ours", help="what is put under faults")
    options = parser.parse_args()
    parts = set(options.parts.split(","))
    if not parts <= {"1", "2", "3"}:
        parser.error(f"--parts: {options.parts} is not a list of 1, 2 and 3")
    if options.lane == "shared-stream":
        return faults_shared_stream.main(options.rounds, FAULTS_BY_NAME)
    webhook = Webhook()
    environment = {
        # A killed scheduler's tasks are noticed by their missing heartbeat.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
        f"AIRFLOW_CONN_{FAULTS_WEBHOOK.upper()}": json.dumps({"conn_type": "http", "host": webhook.url}),
    }
    with bench_stack(environment) as bench:
        bench.wait_for_dags()
        for topic in ALL_TOPICS:
            faults_outside.alter(bench, topic.name, faults_outside.ANY_TIME)
        traffic = Traffic(bench)
        # The first runs after Airflow's start are slow: they would be counted as waits.
        traffic.burst(QUIET_BURST, 0, 1)
        wait_until_handled(bench, traffic, timeout=120)
        outside = without_kills(bench, traffic, webhook, options.webhook_minutes) if "1" in parts else []
        kills = with_kills(bench, traffic, options) if "2" in parts else collections.Counter()
        runs_while_stalled = stall(bench, traffic, options.stall_minutes) if "3" in parts else 0

        seen = effects(bench)
        kept = {place for topic in ALL_TOPICS for place in bench.dead_letters(topic.dead_letter_name)}
        states = {dag_id: bench.runs(dag_id) for dag_id in ("faults", "faults_fan_out", "faults_message")}
        waits = traffic.waits()
        wanted = {str(key) for (key,) in bench.query("select id from outbox where destination = :w", w=FAULTS_WEBHOOK)}
        alarms = bench.query("select source, kind, key from alarms where closed_at is null order by 1, 2, 3")
    quiet, killed = waits.get(WITHOUT_KILLS, {}), waits.get(WITH_KILLS, {})
    lost = sorted(set(traffic.good) - set(seen))
    for number in lost[:20]:
        say(f"lost: {number}")
    for place in sorted(traffic.bad - kept)[:20]:
        say(f"no dead letter of: {place}")
    result = {
        "sent": traffic.sent,
        "handled": len(set(seen) & set(traffic.good)),
        "lost": len(lost) + len(traffic.bad - kept),
        "twice": len(seen) - len(set(seen)),
        "dead_lettered": len(traffic.bad & kept),
        "planted_bad": len(traffic.bad),
        "kinds_of_odd_records": len(traffic.odd),
        "odd_records": sum(traffic.odd.values()),
        "longest_wait_seconds": max([*quiet.values(), *killed.values()], default=0.0),
        "longest_wait_without_kills_seconds": max(quiet.values(), default=0.0),
        "longest_waits": {WITHOUT_KILLS: quiet, WITH_KILLS: killed},
        "requests_to_the_webhook": len(wanted),
        "requests_lost": len(wanted - set(webhook.received)),
        "faults_without_kills": outside,
        "kills": dict(kills),
        "runs_while_stalled": runs_while_stalled,
        "stalled_minutes": options.stall_minutes,
        "runs": states,
        "alarms_open_at_the_end": [" ".join(filter(None, alarm)) for alarm in alarms],
    }
    # example: begin
    if options.requests:
        say("second part: requests, decisions and approvals")
        result["requests"] = faults_requests.run(options.rounds, options.requests)
    # example: end
    for name, value in result.items():
        print(f"{name:36} {value}")
    print_result("faults", result)
    complete = "2" not in parts or all(kills[name] >= options.rounds for name in (*FAULTS_BY_NAME, POWER_CUT))
    complete &= not options.requests or faults_requests.is_good(result["requests"], options.rounds)  # example
    return 0 if result["lost"] == result["twice"] == result["requests_lost"] == 0 and complete else 1


if __name__ == "__main__":
    sys.exit(main())
