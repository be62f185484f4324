"""Decide what a deploy to Astro must contain: `python deploy/decide.py COMMIT`, the commit that is deployed now.

Prints `image-and-dags`, `dags-only`, or `none`, for the commit that is checked out. Astro keeps several versions of Dag
files but only one `include/`, which is in the image. So Dag files alone are deployed only if nothing else of the image
has changed since the deployed commit. Whenever that is not certain (no commit is known, or it is not an ancestor), the
image is deployed too: that is slower, because workers restart, and always right.

It needs Python and git only, and the history back to that commit (`fetch-depth: 0`).
"""

import subprocess
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

WHOLE, DAGS, NOTHING = "image-and-dags", "dags-only", "none"


def decide(changed: Iterable[str], ignored: Iterable[str]) -> str:
    """What to deploy.

    Args:
        changed: The changed paths.
        ignored: The patterns of .dockerignore: files that are in no image.
    """
    patterns = [pattern.removeprefix("**/") for pattern in ignored]
    relevant = [path for path in changed if not any(_matches(path, pattern) for pattern in patterns)]
    if not relevant:
        return NOTHING
    return DAGS if all(path.startswith("dags/") for path in relevant) else WHOLE


def _matches(path: str, pattern: str) -> bool:
    parts = path.split("/")
    return any(fnmatch("/".join(parts[:number]), pattern) for number in range(1, len(parts) + 1))


def changed_since(commit: str, folder: Path) -> list[str] | None:
    """The paths that differ between the commit and HEAD; None if the commit is not an ancestor of HEAD.

    Args:
        commit: The deployed commit.
        folder: The repository.
    """

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)

    # A text that is no commit must not be read as an option.
    if not commit or not all(letter in "0123456789abcdef" for letter in commit):
        return None
    if git("merge-base", "--is-ancestor", commit, "HEAD").returncode:
        return None
    # Both sides of a rename: a file that leaves include/ changes the image.
    difference = git("diff", "--name-only", "--no-renames", "-z", commit, "HEAD")
    return None if difference.returncode else [path for path in difference.stdout.split("\0") if path]


def ignored_by_docker(folder: Path) -> list[str]:
    """The patterns of .dockerignore.

    Args:
        folder: The project.
    """
    lines = (line.strip() for line in (folder / ".dockerignore").read_text().splitlines())
    return [line.rstrip("/") for line in lines if line and not line.startswith("#")]


def main(arguments: list[str], folder: Path = Path()) -> str:
    changed = changed_since(arguments[0] if arguments else "", folder)
    return WHOLE if changed is None else decide(changed, ignored_by_docker(folder))


if __name__ == "__main__":
    print(main(sys.argv[1:]))
