"""Commands for the operational database behind operations_db: `python -m include.streams.operations --help`."""

import argparse
import sys
from collections.abc import Callable

from include.streams.operations.commands import acting_user, add_repair_arguments, run
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
    add_repair_arguments(close, reason="the reason, stored with the alarm and sent to the webhook")
    box = add("repair-outbox", _repair_outbox, "deliver rows of the outbox again or at once, or skip them")
    box.add_argument("repair", choices=("deliver-again", "skip", "deliver-now"))
    box.add_argument("--state", choices=("failed", "skipped", "pending"), default="failed", help="default: %(default)s")
    box.add_argument("--consumer", help="only rows of this consumer")
    box.add_argument("--destination", help="only rows for this topic, or for this Airflow HTTP connection")
    box.add_argument("--row", help="only the row with this id")
    add_repair_arguments(box, reason="the reason")
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
    from include.streams.operations.audit import Actor
    from include.streams.operations.repairs import CloseAlarm, close

    params = CloseAlarm(
        source=options.source, kind=options.kind, key=options.key, reason=options.reason, dry_run=options.dry_run
    )
    return close(params, Actor(acting_user(options.by)))["lines"]


def _repair_outbox(options: argparse.Namespace) -> list[str]:
    from include.streams.operations.audit import Actor
    from include.streams.operations.repairs import RepairOutbox, repair_outbox

    params = RepairOutbox(
        action=options.repair.replace("-", "_"),
        state=options.state,
        consumer=options.consumer,
        destination=options.destination,
        row=options.row,
        reason=options.reason,
        dry_run=options.dry_run,
    )
    return repair_outbox(params, Actor(acting_user(options.by)))["lines"]


if __name__ == "__main__":
    sys.exit(main())
