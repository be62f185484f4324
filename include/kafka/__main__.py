"""Commands for consumers: `python -m include.kafka --help`."""

import argparse
import contextlib
import logging
import sys

from include.kafka.connection import CONN_ID


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m include.kafka", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    reset = commands.add_parser(
        "reset",
        help="let a consumer go on after its topic was deleted and made again, or lost its end",
        description="Forget what the consumer has claimed of the topic and start at the beginning of what is there "
        "now. Open claims on offsets that are gone are closed, and the loss stays on record as an alarm.",
    )
    reset.add_argument("consumer")
    reset.add_argument("topic")
    reset.add_argument("--conn-id", default=CONN_ID, help="Airflow connection (default: %(default)s)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")

    from airflow.sdk.exceptions import AirflowNotFoundException
    from confluent_kafka import KafkaException

    from include.kafka.reset import NothingToReset, reset_consumer

    try:
        # Airflow logs to standard output, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            changes = reset_consumer(options.consumer, options.topic, conn_id=options.conn_id)
    except (NothingToReset, AirflowNotFoundException, KafkaException, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("\n".join(changes) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
