"""Commands for messages, for the state of a project and for rights in Kafka: `python -m include.streams --help`.

`make send` and `make look` call them with the connections of the local stack.
"""

import argparse
import json
import shutil
import sys
import time
from datetime import timedelta
from itertools import cycle, islice
from pathlib import Path
from pkgutil import resolve_name

from include.streams.contracts.__main__ import DEFAULT_REGISTRY, load_registry
from include.streams.kafka.connection import CONN_ID
from include.streams.operations.commands import run

DEFAULT_PROJECT = "include.project:PROJECT"
MAX_HOURS = 24 * 365
CLEAR = "\033[H\033[2J"
WATCH_SECONDS = 2.0


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if not getattr(options, "watch", False):
        return run(lambda: options.action(options), _expected)
    try:
        # The result names unavailable services. So a code other than 0 means wrong arguments, and ends the loop.
        while (code := run(lambda: _over_the_last(options.action(options)), _expected)) == 0:
            sys.stdout.flush()
            time.sleep(WATCH_SECONDS)
        return code
    except KeyboardInterrupt:
        return 130


def _over_the_last(lines: list[str]) -> list[str]:
    """The lines, with a code before the first that clears the terminal."""
    return [CLEAR + lines[0], *lines[1:]]


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
    send.add_argument(
        "file",
        help="JSON documents, one a line or one array: values, or messages {key, headers, value}; - is standard input",
    )
    send.add_argument(
        "--key",
        metavar="FIELD",
        help="the field that is the key (default: the topic's own key); a.b is the field b of the object a",
    )
    send.add_argument(
        "--headers",
        metavar="NAME: VALUE",
        action="append",
        default=[],
        help="a header of every message; repeat the option for more, or separate them by commas",
    )
    send.add_argument(
        "--count",
        type=int,
        help="send this many messages, repeating those of the file; consumers skip the copies, because copies of a "
        "message have the same event id",
    )
    send.add_argument("--partition", type=int, help="default: the client chooses by the key")
    send.add_argument(
        "--no-check",
        action="store_true",
        help="also send values that break the contract, and send to topics that are not declared",
    )
    send.add_argument("--conn-id", default=CONN_ID, help="Airflow connection (default: %(default)s)")
    send.add_argument("--registry", metavar="MODULE:NAME", default=DEFAULT_REGISTRY, help="default: %(default)s")
    look = commands.add_parser(
        "look",
        help="show consumers, landed topics, Dag runs and alarms as they are now",
        description="Show consumers, landed topics, Dag runs and open alarms as they are now. Nothing is changed.",
    )
    look.set_defaults(action=_look)
    look.add_argument("--topic", help="only this topic, its consumers and their alarms")
    look.add_argument("--consumer", help="only this consumer, its topics and their alarms")
    look.add_argument(
        "--hours",
        type=float,
        default=24,
        help="count messages and ended runs of this many hours (default: %(default)s)",
    )
    look.add_argument("--json", action="store_true", help="print one JSON object")
    look.add_argument("--watch", action="store_true", help=f"show it again every {WATCH_SECONDS:.0f} s, until Ctrl-C")
    look.add_argument("--project", metavar="MODULE:NAME", default=DEFAULT_PROJECT, help="default: %(default)s")
    rights = commands.add_parser(
        "rights",
        help="print or create the least rights in Kafka that each part of a deployment needs",
        description="Print the commands that give each part of a deployment the rights in Kafka that it needs, and no "
        "others. Give a principal for each part that you want.",
    )
    rights.set_defaults(action=_rights)
    rights.add_argument(
        "principals",
        metavar="PART=PRINCIPAL",
        nargs="*",
        default=[],
        help="such as tasks=User:airflow; the parts are tasks, triggerer, pages, connect, producers (default: all, as "
        "User:tasks and so on)",
    )
    output = rights.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON array, for Terraform and other tools")
    output.add_argument("--apply", metavar="CONN_ID", help="create the rights, as the user of this Airflow connection")
    rights.add_argument("--project", metavar="MODULE:NAME", default=DEFAULT_PROJECT, help="default: %(default)s")
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
        topics, options.topic, values, headers=headers, key_field=options.key, is_checked=not options.no_check
    )
    wanted = messages if options.count is None else list(islice(cycle(messages), options.count))
    sent = sending.send(options.topic, wanted, partition=options.partition, conn_id=options.conn_id)
    return sending.lines_of(options.topic, sent)


def _look(options: argparse.Namespace) -> list[str]:
    from include.streams.overview.gathering import gather
    from include.streams.overview.text import lines_of

    if not 0 < options.hours <= MAX_HOURS:
        raise ValueError(f"hours is {options.hours:g}; more than 0, at most {MAX_HOURS}")
    period = timedelta(hours=options.hours)
    overview = gather(resolve_name(options.project), topic=options.topic, consumer=options.consumer, period=period)
    if options.json:
        return [json.dumps(overview, indent=2)]
    return lines_of(overview, max(80, shutil.get_terminal_size().columns))


def _rights(options: argparse.Namespace) -> list[str]:
    from include.streams import rights

    principals = dict(_principal(text, list(rights.Part)) for text in options.principals)
    principals = principals or {part: f"User:{part}" for part in rights.Part}
    wanted = rights.rights(resolve_name(options.project))
    if options.json:
        return [json.dumps(rights.as_rows(wanted, principals), indent=2)]
    if options.apply:
        return rights.apply(wanted, principals, options.apply)
    return rights.commands(wanted, principals)


def _principal(text: str, parts: list[str]) -> tuple[str, str]:
    part, equals, principal = text.partition("=")
    if part not in parts or not equals or not principal.startswith("User:"):
        raise ValueError(f"{text!r} is not PART=User:NAME; the parts are {', '.join(parts)}")
    return part, principal


if __name__ == "__main__":
    sys.exit(main())
