"""Remove a stack when its owner is gone: `python -m stack.watch PID FOLDER`, started beside a test session.

A session that is killed runs no teardown; its broker and database would run forever.
"""

import contextlib
import sys
from pathlib import Path

import psutil

from stack.stack import Stack


def main(owner_pid: int, folder: Path) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(owner_pid).wait()
    if folder.exists():
        Stack(folder).remove()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
