"""`make faults`: faults of every kind under load, then a count of what was lost and what was done twice.

Messages are sent in bursts, to a chunked consumer and to one with a Dag run per message: good ones, bad ones, and odd
ones of every kind that a broker takes. Three parts on one stack:

1. Faults that kill nothing of ours: a dead-letter topic refuses, the webhook is away, a foreign member joins each
   consumer group, committed offsets are moved to the end, a transaction stays open.
2. kill -9 of the triggerer, the scheduler, claiming tasks, handling tasks (those of a single message right before and
   right after their transaction) and the broker; ended and silent connections of the database; everything at once.
3. Claims are stalled under traffic, to see how many Dag runs that makes.

Afterwards every message is looked for: good ones among the effects (a table without a unique key), bad ones in the
dead-letter topics, by their coordinates. `longest_wait_seconds` is the longest that a good message waited between
broker and effect in parts 1 and 2, partitions excluded that a fault itself concerned;
`longest_wait_without_kills_seconds` the same in part 1, `longest_waits` the same by fault and topic. While the example
is there, its requests and approvals come under faults of their own afterwards. Prints a table and, as its last line,
one JSON object.
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
from benchmarks.consumers import FAULTS, FAULTS_MESSAGES, FAULTS_MESSAGES_TOPIC, FAULTS_TOPICS, FAULTS_WEBHOOK
from benchmarks.faults_traffic import BURST, Traffic
from benchmarks.kills import kill_program, kill_task, kill_task_at
from benchmarks.receivers import Webhook
from benchmarks.results import print_result
from benchmarks.stand import Stand, say, stand
from benchmarks.water import faults_requests  # example

CONSUMERS = [FAULTS.name, FAULTS_MESSAGES.name]
ALL_TOPICS = (*FAULTS_TOPICS, FAULTS_MESSAGES_TOPIC)
# Part 1: steady traffic well below what two cores can do, so that what a message waits for is the fault.
QUIET_BURST, QUIET_PAUSE_SECONDS = 60, 3.0
FAULT_SECONDS = 60.0
POWER_CUT = "everything at once"
WITHOUT_KILLS, WITH_KILLS = "without kills", "with kills"


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


def effects(it: Stand) -> list[str]:
    names = [topic.name for topic in ALL_TOPICS]
    return [n for (n,) in it.query("select number from bench_effects where lane = any(:names)", names=names)]


def wait_until_handled(it: Stand, traffic: Traffic, timeout: float) -> None:
    """Wait until every message is done, every claim closed and everything delivered, or time is up."""
    deadline = time.monotonic() + timeout
    last = ""
    while time.monotonic() < deadline:
        try:
            ((done,),) = it.query("select count(*) from inbox where consumer = any(:names)", names=CONSUMERS)
            ((opened,),) = it.query(
                "select count(*) from claims where consumer = any(:names) and closed_at is null", names=CONSUMERS
            )
            ((pending,),) = it.query("select count(*) from outbox where state = 'pending'")
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


def without_kills(it: Stand, traffic: Traffic, webhook: Webhook, minutes: float) -> list[str]:
    """Part 1: each fault for a while, all of them while the webhook is away; returns the names of the faults."""
    traffic.part = WITHOUT_KILLS
    others: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
        "refused dead letters": lambda: faults_outside.refused_dead_letters(it),
        "foreign members": lambda: faults_outside.foreign_members(it),
        "moved offsets": lambda: faults_outside.moved_offsets(it),
        "open transaction": lambda: faults_outside.open_transaction(it, traffic),
    }
    away_until = time.monotonic() + 60 * minutes
    seconds = min(FAULT_SECONDS, 60 * minutes / len(others))
    with traffic.steady(QUIET_BURST, QUIET_PAUSE_SECONDS):
        with faults_outside.absent_webhook(webhook):
            say(f"the webhook is away for {minutes:g} minutes")
            for name, fault in others.items():
                say(f"{name} for {seconds:.0f} s; {traffic.sent} sent")
                traffic.fault = name
                with fault():
                    time.sleep(seconds)
            traffic.fault = "absent webhook"
            time.sleep(max(0.0, away_until - time.monotonic()))
        say("the webhook is back")
        time.sleep(10)
    wait_until_handled(it, traffic, timeout=900)
    return ["absent webhook", *others]


def with_kills(it: Stand, traffic: Traffic, options: argparse.Namespace) -> collections.Counter[str]:
    """Part 2; returns how often each fault hit."""
    traffic.part, traffic.fault = WITH_KILLS, "none"
    hits: collections.Counter[str] = collections.Counter()
    faults = FAULTS_BY_NAME
    if faults_outside.can_drop_packets():
        faults = {**faults, "silent database connections": faults_outside.silent_database}
    else:
        say("not run: silent database connections (dropping packets needs root and iptables)")
    faults = {**faults, POWER_CUT: faults_outside.power_cut}
    total = traffic.sent + options.messages
    # Spread over the faults, so that each hits a lane at work.
    pause = max(1.0, options.rounds * len(faults) * 12 / (options.messages / BURST))
    with traffic.steady(BURST, pause, until=total) as sending:
        for n in range(options.rounds):
            for name, fault in faults.items():
                time.sleep(random.uniform(1, 4))
                traffic.fault = name
                hits[name] += fault(it)
                say(f"round {n + 1}: {name} hit {hits[name]} times; {traffic.sent} sent, runs {it.runs('faults')}")
        if sending.is_alive():
            say("waiting for the rest to be sent")
    wait_until_handled(it, traffic, timeout=900)
    return hits


def stall(it: Stand, traffic: Traffic, minutes: float) -> int:
    """Part 3; returns how many runs were created while claims failed."""
    traffic.part = "stalled"
    say(f"claims are stalled for {minutes:g} minutes under traffic")
    it.execute("insert into bench_switches values ('stalled')")
    runs_before = sum(it.runs("faults").values())
    stalled_until = time.monotonic() + 60 * minutes
    while time.monotonic() < stalled_until:
        traffic.burst(10, 0)
        time.sleep(1)
    created = sum(it.runs("faults").values()) - runs_before
    it.execute("delete from bench_switches")
    say(f"{created} runs were created meanwhile; claims work again")
    wait_until_handled(it, traffic, timeout=900)
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
    with stand(environment) as it:
        it.wait_for_dags()
        for topic in ALL_TOPICS:
            faults_outside.alter(it, topic.name, faults_outside.ANY_TIME)
        traffic = Traffic(it)
        # The first runs of an Airflow that has just started are no measure of a fault.
        traffic.burst(QUIET_BURST, 0, 1)
        wait_until_handled(it, traffic, timeout=120)
        outside = without_kills(it, traffic, webhook, options.webhook_minutes) if "1" in parts else []
        kills = with_kills(it, traffic, options) if "2" in parts else collections.Counter()
        runs_while_stalled = stall(it, traffic, options.stall_minutes) if "3" in parts else 0

        seen = effects(it)
        kept = {place for topic in ALL_TOPICS for place in it.dead_letters(topic.dead_letter_name)}
        states = {dag_id: it.runs(dag_id) for dag_id in ("faults", "faults_fan_out", "faults_message")}
        waits = traffic.waits()
        wanted = {str(key) for (key,) in it.query("select id from outbox where destination = :w", w=FAULTS_WEBHOOK)}
        alarms = it.query("select source, kind, key from alarms where closed_at is null order by 1, 2, 3")
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
