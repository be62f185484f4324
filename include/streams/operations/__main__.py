"""Commands for the operational database behind operations_db: `python -m include.streams.operations --help`."""

import argparse
import sys
from collections.abc import Callable

from include.streams.operations.commands import acting_user, run
from include.streams.operations.database import CONN_ID


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return run(lambda: options.action(options), _expected, database=f"connection {CONN_ID}")


def _expected() -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import OperationalError, ProgrammingError

    from include.streams.operations.migrate import MigrationBlocked

    return MigrationBlocked, OperationalError, ProgrammingError, ValueError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m include.streams.operations", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, action: Callable[[argparse.Namespace], list[str]], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(action=action)
        return command

    add("upgrade", _upgrade, "apply the missing migrations; safe to repeat")
    add("alarms", _alarms, "list the open alarms, oldest first")
    close = add(
        "close-alarm",
        _close_alarm,
        "close an alarm whose cause was removed; if the cause returns, the alarm opens again",
    )
    close.add_argument("source", help="the consumer, table or connector, as `alarms` shows it")
    close.add_argument("kind", help="such as messages_lost")
    close.add_argument("key", nargs="?", default="", help="the text after the kind, if `alarms` shows one")
    close.add_argument("--reason", required=True, help="the reason, stored with the alarm and sent to the webhook")
    close.add_argument("--by", default=None, help="the person who decides (default: the user who runs the command)")
    return parser


def _upgrade(_: argparse.Namespace) -> list[str]:
    from include.streams.operations.migrate import upgrade

    return upgrade() or ["nothing to do: the database is up to date"]


def _alarms(_: argparse.Namespace) -> list[str]:
    from include.streams.operations.alarms import open_alarms

    # One line per alarm: an alarm may quote an error with several lines.
    lines = [
        (f"{a.opened_at:%Y-%m-%d %H:%M:%S %Z}", a.source, a.kind, a.key, " ".join(a.message.split()))
        for a in open_alarms()
    ]
    return ["  ".join(filter(None, line)) for line in lines] or ["no alarm is open"]


def _close_alarm(options: argparse.Namespace) -> list[str]:
    from include.streams.operations.alarms import close_alarm, last_closed
    from include.streams.operations.database import begin

    if not (reason := " ".join(options.reason.split())):
        raise ValueError("the reason is empty: write why the alarm is closed")
    source, kind, key = options.source, options.kind, options.key
    named = " ".join(filter(None, (kind, key))) + f" of {source}"
    with begin() as connection:
        if not close_alarm(connection, source, kind, f"closed by {acting_user(options.by)}: {reason}", key=key):
            last = last_closed(connection, source, kind, key)
            before = f" (the last one was closed at {last:%Y-%m-%d %H:%M:%S %Z})" if last else ""
            raise ValueError(f"no alarm {named} is open{before}; `alarms` lists the open ones")
    return [f"closed: {named}"]


if __name__ == "__main__":
    sys.exit(main())
