"""What the commands of a package share: results to standard output, everything else to standard error."""

import contextlib
import getpass
import logging
import sys
from collections.abc import Callable, Iterable


class NotWell(Exception):
    """What was asked for has an answer, and it is no good one: its lines are a result, and the exit code is 1."""

    def __init__(self, lines: Iterable[str]) -> None:
        super().__init__("\n".join(lines))


def run(
    action: Callable[[], list[str]],
    expected: Callable[[], tuple[type[Exception], ...]],
    *,
    database: str = "the database cannot be used",
) -> int:
    """Print the lines that `action` returns; the exit code.

    expected: the errors that concern whoever runs the command: their text is printed as one line, and the code is 1. A
    function, because their modules are imported after logging is set up. A connection that is not defined is one of
    them. database: what an error of SQLAlchemy's is introduced with.
    """
    lines: list[str] = []
    code = 0
    # Airflow logs to standard output, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")

        from airflow.sdk.exceptions import AirflowNotFoundException

        errors = (AirflowNotFoundException, *expected())
        logging.getLogger().setLevel(logging.WARNING)
        try:
            lines = action()
        except NotWell as answer:
            lines, code = [str(answer)], 1
        except errors as error:
            # A database error by the driver's text: SQLAlchemy's adds lines about itself.
            driver = getattr(error, "orig", None)
            said = str(error) if driver is None else f"{database}: {driver}"
            sys.stderr.write(f"{' '.join(said.split())}\n")
            return 1
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return code


def who(by: str | None) -> str:
    """Who decides: whom the command line names, else the user who runs the command. Raises ValueError."""
    try:
        return by or getpass.getuser()
    except (ImportError, KeyError, OSError):
        # A container that runs as a number.
        raise ValueError("the user who runs this has no name: say who decides with --by") from None
