"""Process groups of the stack's programs, recorded to find the processes that a killed program leaves behind.

A scheduler that is killed with -9 leaves its LocalExecutor's workers. They wait forever, and they have inherited the
scheduler's database connection. So PostgreSQL does not notice that the scheduler is gone, and keeps its row locks. The
next scheduler skips locked rows: the Dag runs that the killed scheduler was processing would make no progress. The
workers can only be recognized by their process group: their parent is gone, and their process title has overwritten
their environment.

`python -m stack.groups FOLDER NAME COMMAND...` kills the group of the last start, records its own and runs COMMAND.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil


def members(folder: Path, name: str) -> list[psutil.Process]:
    """The processes in the group that the program had at its last start, without this process.

    Args:
        folder: The stack's folder.
        name: The program.
    """
    try:
        group, session = map(int, (folder / "groups" / name).read_text().split())
    except (OSError, ValueError):
        return []
    group_members = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            # Compare the session too: the number of a group that has ended may be given to another group.
            is_member = os.getpgid(process.pid) == group and os.getsid(process.pid) == session
            if is_member and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                group_members.append(process)
    return group_members


def all_members(folder: Path) -> list[psutil.Process]:
    """The same for all programs of a stack."""
    names = [file.name for file in (folder / "groups").glob("*")]
    return [process for name in names for process in members(folder, name)]


def main(folder: Path, name: str, command: list[str]) -> None:
    for process in members(folder, name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    (folder / "groups").mkdir(mode=0o700, parents=True, exist_ok=True)
    # supervisord has made this process the leader of its own group.
    (folder / "groups" / name).write_text(f"{os.getpgrp()} {os.getsid(0)}")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
