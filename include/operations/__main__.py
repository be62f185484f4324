"""Commands for the operational database behind the connection operations_db: `python -m include.operations --help`."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable

from include.operations.database import CONN_ID


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    results: list[str] = []
    # Airflow logs to standard output, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        logging.basicConfig(level=logging.WARNING)

        from airflow.sdk.exceptions import AirflowNotFoundException
        from sqlalchemy.exc import OperationalError, ProgrammingError

        logging.getLogger().setLevel(logging.WARNING)
        try:
            results = options.action(options)
        except (AirflowNotFoundException, ValueError) as error:
            sys.stderr.write(f"{error}\n")
            return 1
        except (OperationalError, ProgrammingError) as error:
            # The driver's text: SQLAlchemy's adds lines about itself.
            sys.stderr.write(f"connection {CONN_ID}: {' '.join(str(error.orig).split())}\n")
            return 1
    sys.stdout.write("".join(f"{line}\n" for line in results))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m include.operations", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, action: Callable[[argparse.Namespace], list[str]], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(action=action)
        return command

    add("upgrade", _upgrade, "apply the migrations that are missing; harmless to run again")
    add("alarms", _alarms, "list the alarms that are open, oldest first")
    close = add(
        "close-alarm", _close_alarm, "close an alarm whose cause is dealt with; it opens again if it comes back"
    )
    close.add_argument("source", help="the consumer, as `alarms` shows it")
    close.add_argument("kind", help="such as messages_lost")
    return parser


def _upgrade(_: argparse.Namespace) -> list[str]:
    from include.operations.migrate import upgrade

    return upgrade() or ["nothing to do: the database is up to date"]


def _alarms(_: argparse.Namespace) -> list[str]:
    from include.operations.alarms import open_alarms

    lines = [f"{a.opened_at:%Y-%m-%d %H:%M:%S %Z}  {a.source}  {a.kind}  {a.message}" for a in open_alarms()]
    return lines or ["no alarm is open"]


def _close_alarm(options: argparse.Namespace) -> list[str]:
    from include.operations.alarms import close_alarm
    from include.operations.database import begin

    with begin() as connection:
        if not close_alarm(connection, options.source, options.kind):
            raise ValueError(f"no alarm {options.kind} of {options.source} is open; `alarms` lists those that are")
    return [f"closed: {options.kind} of {options.source}"]


if __name__ == "__main__":
    sys.exit(main())
