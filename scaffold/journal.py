"""Changes many files of the project as one: after a kill in the middle, the next command takes the changes back.

Before the first change, the earlier contents are stored in the folder `.stack/scaffold`, which git ignores. Each file
is replaced in one step. So after a kill, a file is as before or as written, and the stored contents say what to
restore.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from scaffold.errors import Refused

_FOLDER = Path(".stack") / "scaffold"
_PART = ".scaffold-part"
WAIT_SECONDS = 30


@contextmanager
def alone(root: Path) -> Iterator[list[str]]:
    """Run one command at a time, after the changes of a killed one were taken back.

    Args:
        root: The project's folder.

    Yields:
        The files that were restored or deleted.

    Raises:
        Refused: Another command runs, or somebody has edited a file since the kill.
    """
    folder = root / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        until = time.monotonic() + WAIT_SECONDS
        while not _locked(lock):
            if time.monotonic() > until:
                raise Refused("another make topic, make revision or make remove-example runs; wait until it ends")
            time.sleep(0.1)
        yield take_back(root)


def _locked(lock: TextIO) -> bool:
    """Lock the file, if nobody has; the kernel releases the lock of a process that was killed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def change(root: Path, after: Mapping[str, bytes | None]) -> None:
    """Write and delete files: all of them, or none.

    Args:
        root: The project's folder.
        after: {path: new content; None to delete the file}.
    """
    folder = root / _FOLDER
    new, journal = folder / "new", folder / "journal"
    shutil.rmtree(new, ignore_errors=True)
    before: dict[str, str | None] = {}
    for number, path in enumerate(after):
        if (root / path).exists():
            before[path] = str(number)
            new.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / path, new / str(number))
        else:
            before[path] = None
    new.mkdir(parents=True, exist_ok=True)
    digests = {path: _digest(content) for path, content in after.items()}
    (new / "plan.json").write_text(json.dumps({"before": before, "after": digests}), encoding="utf-8")
    # On the disk before the first change, also if the machine loses its power.
    os.sync()
    new.rename(journal)
    try:
        for path, content in after.items():
            if content is None:
                (root / path).unlink()
            else:
                _replace(root / path, content)
    except BaseException:
        # A full disk, or Ctrl-C.
        take_back(root)
        raise
    _finish(root, after)


def take_back(root: Path) -> list[str]:
    """Restore the files that a killed command has changed, unless it had written all of them.

    Args:
        root: The project's folder.

    Returns:
        The files that were restored or deleted; [] if no command was killed while it wrote.

    Raises:
        Refused: Somebody has edited a file since; nothing was restored.
    """
    journal = root / _FOLDER / "journal"
    if not journal.exists():
        return []
    plan = json.loads((journal / "plan.json").read_text(encoding="utf-8"))
    before = {path: name and (journal / name).read_bytes() for path, name in plan["before"].items()}
    now = {path: (root / path).read_bytes() if (root / path).exists() else None for path in before}
    edited = [path for path in before if _digest(now[path]) not in (_digest(before[path]), plan["after"][path])]
    if edited:
        raise Refused(
            f"an earlier command was killed while it wrote, and {', '.join(edited)} was edited since: take back or "
            f"finish the changes by hand (git status shows them; {_FOLDER}/journal has the contents before), then "
            f"remove {_FOLDER}/journal"
        )
    if all(_digest(now[path]) == plan["after"][path] for path in before):
        _finish(root, plan["after"])
        return []
    changed = [path for path in before if now[path] != before[path]]
    for path, content in before.items():
        _part(root / path).unlink(missing_ok=True)
        if content is not None and now[path] != content:
            _replace(root / path, content)
        elif content is None:
            (root / path).unlink(missing_ok=True)
            remove_empty(root / path, root)
    _end(root)
    return changed


def remove_empty(path: Path, root: Path) -> None:
    """Remove the folders above a file that hold nothing any more."""
    for folder in path.parents:
        if folder == root:
            return
        if not folder.exists():
            continue
        left = [child for child in folder.iterdir() if child.name != "__pycache__"]
        if left:
            return
        shutil.rmtree(folder)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    try:
        part.write_bytes(content)
        if path.exists():
            shutil.copymode(path, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}{_PART}")


def _finish(root: Path, after: Mapping[str, object]) -> None:
    for path, content in after.items():
        if content is None:
            remove_empty(root / path, root)
    _end(root)


def _end(root: Path) -> None:
    journal = root / _FOLDER / "journal"
    # Renamed first: half a journal must not look like a whole one.
    done = journal.with_name("done")
    shutil.rmtree(done, ignore_errors=True)
    journal.rename(done)
    with contextlib.suppress(OSError):
        shutil.rmtree(done)


def _digest(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()
