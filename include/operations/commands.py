"""What the commands of a package share: results to standard output, everything else to standard error."""

import contextlib
import logging
import sys
from collections.abc import Callable


def run(action: Callable[[], list[str]], expected: Callable[[], tuple[type[Exception], ...]]) -> int:
    """Print the lines that `action` returns; the exit code.

    expected: the errors that concern whoever runs the command: their text is printed, and the code is 1. A function,
    because their modules are imported after logging is set up. A connection that is not defined is one of them.
    """
    # Airflow logs to standard output, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        logging.basicConfig(level=logging.WARNING)

        from airflow.sdk.exceptions import AirflowNotFoundException

        errors = (AirflowNotFoundException, *expected())
        logging.getLogger().setLevel(logging.WARNING)
        try:
            lines = action()
        except errors as error:
            sys.stderr.write(f"{error}\n")
            return 1
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0
