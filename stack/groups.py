"""Process groups of our programs, written down so that what a killed program leaves behind can be found.

A scheduler that is killed with -9 leaves its LocalExecutor's workers: they wait for ever, with the scheduler's database
connection inherited, so PostgreSQL does not see that it is gone and keeps its row locks. The next scheduler passes over
locked rows: the Dag runs that the killed one was looking at would stand still. Neither their parent (gone) nor their
environment (overwritten by their process title) tells whose they are; their process group does.

`python -m stack.groups FOLDER NAME COMMAND...` ends the group of the last start, notes its own and becomes COMMAND.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil


def members(folder: Path, name: str) -> list[psutil.Process]:
    """Processes of the group that the program had at its last start, except ourselves."""
    try:
        group, session = map(int, (folder / "groups" / name).read_text().split())
    except (OSError, ValueError):
        return []
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            # The session too: the number of a group that has ended may be given to another.
            mine = os.getpgid(process.pid) == group and os.getsid(process.pid) == session
            if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def all_members(folder: Path) -> list[psutil.Process]:
    """The same for all programs of a stack."""
    names = [file.name for file in (folder / "groups").glob("*")]
    return [process for name in names for process in members(folder, name)]


def main(folder: Path, name: str, command: list[str]) -> None:
    for process in members(folder, name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    (folder / "groups").mkdir(mode=0o700, parents=True, exist_ok=True)
    # supervisord has made us the leader of a group of our own.
    (folder / "groups" / name).write_text(f"{os.getpgrp()} {os.getsid(0)}")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
