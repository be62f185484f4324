"""Sustained load: very many leaks at once through the example's own `raise_alerts`, and through the plain consumer.

Done is a leak whose alert can be seen, whose message has been sent and whose request has been made, or skipped
where the webhook's connection is not defined. Once more with a receiver.
"""

import time

from benchmarks.lanes import Lane
from benchmarks.receivers import Webhook
from benchmarks.stand import Stand, say
from benchmarks.water.lanes import LANES
from include.water.alerts.effect import WEBHOOK_CONN_ID

# At 30 a second, 100,000 messages would be an hour: what is not done by then is not waited for.
TIMEOUT_SECONDS = 1_200.0
# Of the count while it is waited for: it reads a long table.
PAUSE_SECONDS = 2.0
QUIET_SECONDS = 120.0


def sustained(it: Stand, lane: Lane, prefix: str, count: int) -> tuple[float, int]:
    """(messages a second from the first sent to the last done, how many were not done in time)."""
    said_at = time.time()

    def progress(done: int) -> None:
        nonlocal said_at
        if time.time() - said_at > 10:
            said_at = time.time()
            say(f"{prefix}: {done - before} of {count} done after {said_at - started:.0f} s")

    before = lane.done(it)
    started = lane.send(it, [f"{prefix}-{n}" for n in range(count)])
    done, ended = it.wait_for_count(
        lambda: lane.done(it),
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


def with_receiver(it: Stand, count: int) -> tuple[float, int, dict[str, int]]:
    """The same with the webhook's connection defined; what the receiver got beside it."""
    webhook = PatientWebhook()
    try:
        with it.connection(WEBHOOK_CONN_ID, webhook.url):
            rate, undone = sustained(it, LANES["alerts"], "receiver", count)
    finally:
        webhook.go_away()
    bodies = [body for bodies in webhook.received.values() for body in bodies]
    ids = [body["alert_id"] for body in bodies if "/receiver-" in body["alert_id"]]
    return rate, undone, {"received": len(set(ids)), "received_again": len(ids) - len(set(ids))}
