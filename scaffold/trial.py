"""A copy of the project in a temporary folder: everything is written and checked there before the project changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scaffold import journal
from scaffold.errors import Refused

# Left out of the copy: nothing that is checked reads them.
_SKIPPED = {".venv", ".venv-next", ".stack", ".git", "__pycache__", ".ruff_cache", ".pytest_cache", ".hypothesis"}
_SKIPPED |= {".import_linter_cache", "screenshots"}


class Trial:
    """The copy.

    Args:
        root: The project's folder.
        folder: The folder of the copy.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder
        self._copied = {path: (folder / path).read_bytes() for path in _files(folder)}

    def paths(self) -> list[str]:
        """All files that the copy has now."""
        return sorted(_files(self.folder))

    def read(self, path: str) -> str | None:
        """The text of a file; None if there is none, or if it is no text."""
        file = self.folder / path
        try:
            return file.read_text(encoding="utf-8") if file.exists() else None
        except UnicodeDecodeError:
            return None

    def write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text, encoding="utf-8")

    def remove(self, path: str) -> None:
        (self.folder / path).unlink()

    def changed(self) -> list[str]:
        """The files that are new or different, by path."""
        now = _files(self.folder)
        return sorted(path for path in now if self._copied.get(path) != (self.folder / path).read_bytes())

    def removed(self) -> list[str]:
        """The files that are gone, by path."""
        return sorted(path for path in self._copied if not (self.folder / path).exists())

    def run(self, what: str, *command: str) -> str:
        """Run a command in the copy.

        Args:
            what: What it does, for the error.
            command: The command; `python` and `ruff` are those of this process.

        Returns:
            What it printed.

        Raises:
            Refused: It failed.
        """
        program = Path(sys.executable) if command[0] == "python" else Path(sys.executable).with_name(command[0])
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [program, *command[1:]], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600
        )
        if done.returncode:
            raise Refused(f"nothing was written, because {what} failed:\n{(done.stdout + done.stderr).strip()[-4000:]}")
        return done.stdout

    def tidy(self, paths: Sequence[str]) -> None:
        """Sort imports, remove those that are not used, format, and check Python files.

        Raises:
            Refused: A file breaks a rule.
        """
        modules = [path for path in paths if path.endswith(".py")]
        if modules:
            self.run("sorting the imports", "ruff", "check", "-q", "--select", "I,F401", "--fix", *modules)
            self.run("formatting", "ruff", "format", "-q", *modules)
            # Formatting may have joined what the rule about imports had split.
            self.run("ruff", "ruff", "check", "-q", *modules)

    def apply(self) -> None:
        """Change the project as the copy was changed.

        Raises:
            Refused: A file of the project has changed since it was copied.
        """
        changed, removed = self.changed(), self.removed()
        for path in (*changed, *removed):
            now = (self.root / path).read_bytes() if (self.root / path).exists() else None
            if now != self._copied.get(path):
                raise Refused(f"nothing was written: {path} has changed in the meantime; run it again")
        journal.change(
            self.root,
            {path: (self.folder / path).read_bytes() for path in changed} | dict.fromkeys(removed),
        )


@contextmanager
def trial(root: Path) -> Iterator[Trial]:
    """Copy the project for a trial.

    Args:
        root: The project's folder.
    """
    with tempfile.TemporaryDirectory(prefix="scaffold-") as name:
        folder = Path(name) / "project"
        for path in of_the_project(root):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / path, folder / path)
        yield Trial(root, folder)


def of_the_project(root: Path) -> list[str]:
    """The files that git knows or would add; without git, all."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return _files(root)
    known = dict.fromkeys(path for path in done.stdout.split("\0") if path)
    if done.returncode or not known:
        return _files(root)
    return [path for path in known if (root / path).is_file() and not _SKIPPED & set(Path(path).parts)]


def _files(folder: Path) -> list[str]:
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        found += [str((Path(parent) / name).relative_to(folder)) for name in files if not name.endswith(".pyc")]
    return found
