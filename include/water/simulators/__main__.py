"""Simulators of the water utility's data sources.

serve-feed    answers like the USGS earthquake feed, on 127.0.0.1, until SIGTERM.
run           sends leaks, customers' requests and meter readings to Kafka through the connection kafka_default, some of
              them breaking their contract, and writes a report of what the broker has acknowledged.
send-history  sends the meter readings of the last days, including late, missing and repeated readings; `run` continues
              from there. Prints what was sent as JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    return options.action(options)


def _serve_feed(options: argparse.Namespace) -> int:
    from include.water.simulators.feed_server import serve
    from include.water.simulators.quakes import Quakes

    since = datetime.now(UTC) - timedelta(seconds=options.history_seconds)
    try:
        serve(options.port, Quakes(options.seed, since, options.interval_seconds, options.bad_every))
    except OSError as error:
        sys.stderr.write(f"port {options.port}: {error.strerror}; choose another with --port\n")
        return 1
    return 0


def _run(options: argparse.Namespace) -> int:
    from include.water.simulators import traffic

    rates = {**traffic.RATES, **dict(options.rate)}
    if options.history_days:
        from include.water.simulators.office import write_office_data

        # Before the readings: the first model is trained on the confirmed leaks.
        write_office_data(options.history_days, options.seed)
    return traffic.run(
        options.seconds, options.report, rates, seed=options.seed, bad=options.bad, history_days=options.history_days
    )


def _send_history(options: argparse.Namespace) -> int:
    from include.streams.kafka.producer import AcknowledgedProducer
    from include.water.simulators.meters import Faults, send_history

    started = time.monotonic()
    counts = send_history(
        options.days,
        timedelta(minutes=options.interval_minutes),
        seed=options.seed,
        faults=Faults(bad=options.bad),
        make_producer=AcknowledgedProducer,
    )
    sent = {"seconds": round(time.monotonic() - started, 1), **counts}
    sys.stdout.write(json.dumps(sent) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m include.water.simulators",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)

    feed = commands.add_parser("serve-feed", help="serve simulated earthquakes")
    feed.add_argument("--port", type=int, required=True)
    feed.add_argument("--seed", type=int, default=1)
    feed.add_argument("--interval-seconds", type=_positive, default=15.0, help="between earthquakes: %(default)s")
    feed.add_argument("--history-seconds", type=float, default=600.0, help="shown at the start: %(default)s")
    feed.add_argument(
        "--bad-every", type=int, default=0, help="break the format of every Nth earthquake; default: none"
    )
    feed.set_defaults(action=_serve_feed)

    history = commands.add_parser("send-history", help="send the meter readings of the last days")
    history.add_argument("--days", type=_positive, default=45.0, help="how far back: %(default)s")
    history.add_argument(
        "--interval-minutes", type=_divisor_of_a_day, default=60, help="between two readings of a meter: %(default)s"
    )
    history.add_argument("--bad", type=int, default=0, metavar="N", help="of each kind of bad message: %(default)s")
    history.add_argument("--seed", type=int, default=1, help="of the network; `run` goes on with the same")
    history.set_defaults(action=_send_history)

    run = commands.add_parser("run", help="send messages to Kafka")
    run.add_argument("--for", dest="seconds", type=_positive, required=True, metavar="SECONDS")
    run.add_argument("--report", type=Path, required=True, metavar="FILE", help="JSON, replaced every second")
    run.add_argument(
        "--rate",
        type=_rate,
        action="append",
        default=[],
        metavar="TOPIC=N",
        help="messages a second: leaks.detected=5, service.requests=0.5, meter.readings=4; may be given repeatedly",
    )
    run.add_argument("--bad", type=int, default=1, metavar="N", help="of each kind of bad message: %(default)s")
    run.add_argument("--seed", type=int, default=1)
    run.add_argument(
        "--history-days", type=float, default=0, metavar="N", help="meter readings of the last N days first: none"
    )
    run.set_defaults(action=_run)
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _divisor_of_a_day(text: str) -> int:
    if not text.isdecimal() or not int(text) or 1440 % int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number of minutes by which a day can be divided")
    return int(text)


def _rate(text: str) -> tuple[str, float]:
    from include.water.simulators.traffic import RATES

    topic, _, number = text.partition("=")
    if topic not in RATES:
        raise argparse.ArgumentTypeError(f"no topic {topic!r}; one of {', '.join(RATES)}")
    return topic, float(number)


if __name__ == "__main__":
    sys.exit(main())
