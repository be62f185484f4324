"""Sustained load: very many leaks at once through the example's own `raise_alerts`, and through the plain consumer.

A leak is done when its alert can be seen, its message is sent, and its request is made (or skipped, if the webhook's
connection is not defined). Then the same with a receiver.
"""

import time

from benchmarks.bench_stack import BenchStack, say
from benchmarks.lanes import Lane
from benchmarks.receivers import Webhook
from benchmarks.water.lanes import LANES
from include.water.alerts.effect import WEBHOOK_CONN_ID

# At 30 a second, 100,000 messages take an hour; stop waiting then.
TIMEOUT_SECONDS = 1_200.0
# Seconds between two counts: a count reads a long table.
PAUSE_SECONDS = 2.0
QUIET_SECONDS = 120.0


def sustained(bench: BenchStack, lane: Lane, prefix: str, count: int) -> tuple[float, int]:
    """Measure a lane.

    Returns:
        (messages per second from the first sent to the last done, how many were not done in time).
    """
    said_at = time.time()

    def progress(done: int) -> None:
        nonlocal said_at
        if time.time() - said_at > 10:
            said_at = time.time()
            say(f"{prefix}: {done - before} of {count} done after {said_at - started:.0f} s")

    before = lane.done(bench)
    started = lane.send(bench, [f"{prefix}-{n}" for n in range(count)])
    done, ended = bench.wait_for_count(
        lambda: lane.done(bench),
        before + count,
        TIMEOUT_SECONDS,
        quiet=QUIET_SECONDS,
        pause=PAUSE_SECONDS,
        progress=progress,
    )
    rate = (done - before) / (ended - started)
    say(f"{prefix}: {done - before} of {count} in {ended - started:.1f} s, {rate:.0f} a second")
    return rate, count - (done - before)


class PatientWebhook(Webhook):
    keeps_connections = True


def with_receiver(bench: BenchStack, count: int) -> tuple[float, int, dict[str, int]]:
    """The same with the webhook's connection defined; also returns what the receiver got."""
    webhook = PatientWebhook()
    try:
        with bench.connection(WEBHOOK_CONN_ID, webhook.url):
            rate, undone = sustained(bench, LANES["alerts"], "receiver", count)
    finally:
        webhook.go_away()
    bodies = [body for bodies in webhook.received.values() for body in bodies]
    ids = [body["alert_id"] for body in bodies if "/receiver-" in body["alert_id"]]
    return rate, undone, {"received": len(set(ids)), "received_again": len(ids) - len(set(ids))}
