"""Commands for consumers: `python -m include.streams.kafka --help`."""

import argparse
import sys

from include.streams.kafka.connection import CONN_ID
from include.streams.operations.commands import run


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return run(lambda: options.action(options), _expected)


def _expected() -> tuple[type[Exception], ...]:
    from confluent_kafka import KafkaException
    from sqlalchemy.exc import OperationalError, ProgrammingError

    from include.streams.kafka.reset import NothingToReset

    return NothingToReset, KafkaException, OperationalError, ProgrammingError, ValueError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m include.streams.kafka", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    reset = commands.add_parser(
        "reset",
        help="resume a consumer after its topic was deleted and recreated, or its log was truncated",
        description="Delete the consumer's positions in the topic and start at the beginning of the current log. Open "
        "claims on offsets that are gone are closed, and the alarm messages_lost names the lost offsets.",
    )
    reset.set_defaults(action=_reset)
    reset.add_argument("consumer")
    reset.add_argument("topic")
    reset.add_argument("--conn-id", default=CONN_ID, help="Airflow connection (default: %(default)s)")
    return parser


def _reset(options: argparse.Namespace) -> list[str]:
    from include.streams.kafka.reset import reset_consumer

    return reset_consumer(options.consumer, options.topic, conn_id=options.conn_id)


if __name__ == "__main__":
    sys.exit(main())
