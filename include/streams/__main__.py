"""Commands for trying a project out and for looking at it: `python -m include.streams --help`.

`make send` and `make look` call them with the connections of the local stack.
"""

import argparse
import sys
from itertools import cycle, islice
from pathlib import Path

from include.streams.contracts.__main__ import DEFAULT_REGISTRY, load_registry
from include.streams.kafka.connection import CONN_ID
from include.streams.operations.commands import run


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return run(lambda: options.action(options), _expected)


def _expected() -> tuple[type[Exception], ...]:
    from confluent_kafka import KafkaException
    from sqlalchemy.exc import DBAPIError

    from include.streams.kafka.sending import CannotSend

    return CannotSend, DBAPIError, ImportError, KafkaException, LookupError, OSError, TypeError, ValueError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m include.streams", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    send = commands.add_parser(
        "send",
        help="send the messages of a file to a topic",
        description="Send the messages of a file to a topic, after a check against the topic's contract.",
    )
    send.set_defaults(action=_send)
    send.add_argument("topic")
    send.add_argument("file", help="one JSON document a line, a JSON array, or one document; - is standard input")
    send.add_argument("--key", metavar="FIELD", help="the field that is the key (default: the topic's own key); a.b")
    send.add_argument(
        "--headers", metavar="NAME: VALUE", action="append", default=[], help="repeat it, or separate by commas"
    )
    send.add_argument(
        "--count",
        type=int,
        help="send so many messages, the file's in turn; copies of a message have one event id, so consumers skip them",
    )
    send.add_argument("--partition", type=int, help="default: the client chooses by the key")
    send.add_argument(
        "--no-check", action="store_true", help="send values that break the contract too, also to other topics"
    )
    send.add_argument("--conn-id", default=CONN_ID, help="Airflow connection (default: %(default)s)")
    send.add_argument("--registry", metavar="MODULE:NAME", default=DEFAULT_REGISTRY, help="default: %(default)s")
    return parser


def _send(options: argparse.Namespace) -> list[str]:
    from include.streams.kafka import sending

    if options.count is not None and options.count < 1:
        raise ValueError(f"count is {options.count}; at least 1")
    values = sending.values_in(sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes())
    if not values:
        raise ValueError(f"{'standard input' if options.file == '-' else options.file} holds no message")
    topics, headers = load_registry(options.registry), sending.headers_in(options.headers)
    messages = sending.messages_of(
        topics, options.topic, values, key_field=options.key, is_checked=not options.no_check
    )
    wanted = messages if options.count is None else list(islice(cycle(messages), options.count))
    sent = sending.send(options.topic, wanted, headers=headers, partition=options.partition, conn_id=options.conn_id)
    return sending.lines_of(options.topic, sent)


if __name__ == "__main__":
    sys.exit(main())
