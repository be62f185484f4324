"""Shared code of the packages' commands: results go to standard output, everything else to standard error."""

import argparse
import contextlib
import getpass
import logging
import sys
from collections.abc import Callable, Iterable

# The reason of a repair whose command was given without one.
BY_HAND = "by hand"


class UnhealthyError(Exception):
    """The check ran and found a problem: its lines are printed as a result, and the exit code is 1."""

    def __init__(self, lines: Iterable[str]) -> None:
        super().__init__("\n".join(lines))


def run(
    action: Callable[[], list[str]],
    expected: Callable[[], tuple[type[Exception], ...]],
    *,
    database: str = "the database cannot be used",
) -> int:
    """Run a command and print its lines.

    Args:
        action: Returns the lines of the result.
        expected: Returns the classes of errors for the person who runs the command: their text is printed to standard
            error as one line. A function, because the modules of the classes are imported after logging is set up. The
            error about a connection that is not defined is always included.
        database: The prefix for the text of an SQLAlchemy error.

    Returns:
        The exit code: 0, or 1 after an expected error or `UnhealthyError`.
    """
    lines: list[str] = []
    code = 0
    # Redirected, because Airflow logs to standard output, which is for results only.
    with contextlib.redirect_stdout(sys.stderr):
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")

        from airflow.sdk.exceptions import AirflowNotFoundException

        errors = (AirflowNotFoundException, *expected())
        logging.getLogger().setLevel(logging.WARNING)
        try:
            lines = action()
        except UnhealthyError as unhealthy:
            lines, code = [str(unhealthy)], 1
        except errors as error:
            # Shows the driver's text of a database error: SQLAlchemy's own text has additional lines about SQLAlchemy.
            driver = getattr(error, "orig", None)
            text = str(error) if driver is None else f"{database}: {driver}"
            sys.stderr.write(f"{' '.join(text.split())}\n")
            return 1
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return code


def acting_user(by: str | None) -> str:
    """The name of the person who decides.

    Args:
        by: The name from the command line; None or empty to use the user who runs the command.

    Raises:
        ValueError: The user who runs the command has no name.
    """
    try:
        return by or getpass.getuser()
    except (ImportError, KeyError, OSError):
        # A container that runs under a numeric user id without a name.
        raise ValueError("the user who runs this command has no name: name the person who decides with --by") from None


def add_repair_arguments(command: argparse.ArgumentParser, *, reason: str, default: str | None = None) -> None:
    """Add the arguments of every command that repairs something: --reason, --by and --dry-run.

    Args:
        command: The command's parser.
        reason: The help text for --reason.
        default: The reason if none is given; None if it must be given.
    """
    shown = reason if default is None else f"{reason} (default: {default})"
    command.add_argument("--reason", required=default is None, default=default, help=shown)
    command.add_argument("--by", default=None, help="the person who decides (default: the user who runs the command)")
    command.add_argument("--dry-run", action="store_true", help="only show what would be done")
