"""A command that is killed while it writes files leaves nothing that stops the next one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scaffold import journal
from scaffold.errors import Refused
from scaffold.trial import trial
from stack.requirements import PROJECT

# Kills itself after so many replaced or deleted files, or before the first.
KILLED = """
import os, sys
from pathlib import Path
from scaffold import journal

root, steps = Path(sys.argv[1]), int(sys.argv[2])

def counted(function):
    def call(*arguments, **options):
        global steps
        if steps == 0:
            os._exit(9)
        steps -= 1
        return function(*arguments, **options)
    return call

Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
with journal.alone(root):
    journal.change(
        root, {"old.py": b"new", "include/shop/orders.py": b"orders", "gone.py": None, "dags/orders.py": b"dag"}
    )
os._exit(7)
"""
BEFORE = {"old.py": b"old", "gone.py": b"gone"}
AFTER = {"old.py": b"new", "include/shop/orders.py": b"orders", "dags/orders.py": b"dag"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, content in BEFORE.items():
        (tmp_path / path).write_bytes(content)
    return tmp_path


def content_of(root: Path) -> dict[str, bytes]:
    """All files and empty folders, without those of the journal."""
    found = {str(path.relative_to(root)): path for path in root.rglob("*") if ".stack" not in path.parts}
    empty = [path for path in found.values() if path.is_dir() and not any(path.iterdir())]
    assert empty == []
    return {name: path.read_bytes() for name, path in found.items() if path.is_file()}


def kill(root: Path, steps: int) -> int:
    command = [sys.executable, "-c", KILLED, str(root), str(steps)]
    return subprocess.run(command, cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)}, timeout=60).returncode


def test_after_a_kill_at_any_step_the_next_command_finds_all_files_or_none(root: Path):
    states = []
    for steps in range(20):
        code = kill(root, steps)
        with journal.alone(root) as restored:
            states.append(content_of(root))
        assert states[-1] == (AFTER if code == 7 or states[-1] != BEFORE else BEFORE)
        assert bool(restored) <= (states[-1] == BEFORE)
        if states[-1] == AFTER:
            break
        assert code == 9
    assert len(states) > 4, "it was not killed in the middle"
    assert not (root / ".stack" / "scaffold" / "journal").exists()


def test_a_file_that_was_edited_since_the_kill_is_not_overwritten(root: Path):
    assert kill(root, 3) == 9
    (root / "old.py").write_bytes(b"mine")
    with pytest.raises(Refused, match=r"old.py was edited since: .* remove .stack/scaffold/journal"):
        journal.take_back(root)
    assert (root / "old.py").read_bytes() == b"mine"


def test_an_error_while_writing_restores_everything(root: Path):
    (root / "dags").write_bytes(b"a file where a folder should be")
    before = content_of(root)
    with pytest.raises(OSError, match="dags"):
        journal.change(root, {"old.py": b"new", "gone.py": None, "dags/orders.py": b"dag"})
    assert content_of(root) == before


def test_a_second_command_waits_and_then_says_why(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(journal, "WAIT_SECONDS", 0.2)
    with journal.alone(root), pytest.raises(Refused, match="wait until it ends"), journal.alone(root):
        pass


def test_a_trial_changes_the_project_as_one(root: Path):
    with trial(root) as copy:
        copy.write("include/shop/orders.py", "orders")
        copy.write("old.py", "new")
        copy.remove("gone.py")
        copy.apply()
    assert content_of(root) == {"include/shop/orders.py": b"orders", "old.py": b"new"}
