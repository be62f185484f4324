"""A copy of the project in a temporary folder, for `make topic` and `make remove-example` to change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Commands that take longer have failed. A whole `make test` may take half an hour.
LONGEST_SECONDS = 3_600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.scaffold)
            item.add_marker(pytest.mark.timeout(2 * LONGEST_SECONDS))


class Copy:
    """A copy of the project, committed, with the packages of the original."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        paths = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        for path in filter(None, paths):
            if (ROOT / path).is_file() and not (ROOT / path).is_symlink():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, folder / path)
        # Folders with links, and no link to the folder: git looks behind no link to see what it ignores.
        for parent in (Path(sys.prefix), Path(sys.prefix) / "bin"):
            (folder / ".venv" / parent.relative_to(sys.prefix)).mkdir()
            for part in parent.iterdir():
                if part.name != "bin":
                    (folder / ".venv" / part.relative_to(sys.prefix)).symlink_to(part)
        for lock in ("requirements.lock", "stack/uv.lock"):
            # Older than the packages, so that make does not install them again.
            os.utime(folder / lock, (0, 0))
        self.git("init", "-q")
        self.commit()

    def git(self, *arguments: str) -> str:
        author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        return subprocess.run(
            ["git", *author, *arguments], cwd=self.folder, capture_output=True, text=True, check=True
        ).stdout

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "a state")

    def make(self, target: str, **variables: str) -> str:
        """Run a target of make; returns what it prints, and fails if the target does."""
        done = self.try_make(target, **variables)
        assert done.returncode == 0, f"make {target} {variables}\n{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}"
        return done.stdout

    def try_make(self, target: str, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "AIRFLOW_", "COV_"))
        }
        command = ["make", *target.split(), *(f"{name}={value}" for name, value in variables.items())]
        return subprocess.run(
            command, cwd=self.folder, env=kept, capture_output=True, text=True, timeout=LONGEST_SECONDS
        )

    def changes(self) -> list[str]:
        return [line[3:] for line in self.git("status", "--porcelain").splitlines()]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Iterator[Copy]:
    """One copy for all tests of a module."""
    found = Copy(tmp_path_factory.mktemp("project"))
    yield found
    subprocess.run([sys.executable, "-m", "stack", "remove"], cwd=found.folder, capture_output=True, timeout=120)
    shutil.rmtree(found.folder)


@pytest.fixture(scope="session")
def webhooks_file(tmp_path_factory) -> Path:
    """30 webhooks of a code host: nested documents of 5 to 30 kB, of several types, id and type in headers."""
    from tests import webhooks

    path = tmp_path_factory.mktemp("samples") / "webhooks.jsonl"
    webhooks.write_sample(path, 30)
    return path


TYPED = {"TYPE": "header:X-Hub-Event", "ID": "header:X-Hub-Delivery"}
# Both lanes, and both shapes of the event lane.
LANES = {
    "code.webhooks": {"LANE": "event", "SHAPE": "chunked"},
    "code.reviews": {"LANE": "event", "SHAPE": "per_message"},
    "code.archive": {"LANE": "standard"},
}
