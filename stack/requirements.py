"""Write requirements.txt, which the Astro Runtime image installs, from requirements.lock.

It contains all packages that the Dags need, with their dependencies, each with the lock's version, so that no version
can change when the image is built. It does not contain the packages of the image: Airflow, its own providers, and all
their dependencies. The image has tested versions of these, and a pin here would replace a part of Airflow.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent

# The image contains Airflow, and these packages with it: a pin here would replace a part of Airflow.
CARRIED_BY_AIRFLOW = frozenset(
    {"alembic", "apache-airflow", "apache-airflow-providers-standard", "pydantic", "sqlalchemy", "tenacity"}
)

# Other packages of the image that are also in the lock. They and all their dependencies keep the image's versions.
IMAGE_ROOTS = (
    "apache-airflow-core",
    "apache-airflow-providers-common-compat",
    "apache-airflow-providers-common-io",
    "apache-airflow-providers-common-sql",
    "apache-airflow-providers-smtp",
    "apache-airflow-providers-standard",
    "apache-airflow-task-sdk",
)

# The image's Python and system: the lock supports several, and selects some versions by marker.
IMAGE = {
    **default_environment(),
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.12.12",
    "python_version": "3.12",
    "sys_platform": "linux",
}

HEADER = """\
# The packages that the Dags need in addition to Astro Runtime. Written by `python -m stack.requirements` from
# pyproject.toml and requirements.lock: edit those files instead.
"""
NEEDED = """
# The dependencies of these packages. Not listed: packages that the image contains for Airflow.
"""


def locked_versions(lock: str) -> dict[str, str]:
    """Return name -> version for the image's Python.

    Args:
        lock: The text of a lock of `uv pip compile`.
    """
    return {name: version for name, version, _ in _locked(lock)}


def needed_by(lock: str, roots: Iterable[str]) -> set[str]:
    """Return the locked packages that the packages `roots` need, including `roots`.

    Args:
        lock: The text of a lock of `uv pip compile`.
        roots: Names of packages.
    """
    children: dict[str, set[str]] = {}
    for name, _, parents in _locked(lock):
        for parent in parents:
            children.setdefault(parent, set()).add(name)
    needed: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        # Every provider needs the package `apache-airflow`, which in turn names providers that no image contains by
        # itself.
        if name not in needed and name != "apache-airflow":
            needed.add(name)
            waiting += children.get(name, ())
    return needed


def _locked(lock: str) -> Iterator[tuple[str, str, set[str]]]:
    """(name, version, the packages that need it) of each package that the lock holds for the image's Python."""
    for block in re.split(r"\n(?=[a-zA-Z0-9])", "\n" + re.sub(r"^#.*\n", "", lock, flags=re.MULTILINE)):
        line, *rest = block.strip("\n").split("\n")
        if not line:
            continue
        requirement = Requirement(line.removesuffix("\\").strip())
        if requirement.marker is None or requirement.marker.evaluate(IMAGE):
            comments = (text.strip(" #") for text in rest if text.lstrip().startswith("#"))
            parents = {
                str(canonicalize_name(text.removeprefix("via").split()[0])) for text in comments if text != "via"
            }
            yield str(canonicalize_name(requirement.name)), str(requirement.specifier).removeprefix("=="), parents


def export(project: Path = PROJECT) -> str:
    """Return the text of requirements.txt.

    Args:
        project: The folder with pyproject.toml and requirements.lock.

    Raises:
        KeyError: The lock lacks a direct dependency.
    """
    direct = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
    lock = (project / "requirements.lock").read_text()
    versions = locked_versions(lock)
    lines = []
    own = set()
    for requirement in map(Requirement, direct):
        name = canonicalize_name(requirement.name)
        if name not in CARRIED_BY_AIRFLOW:
            own.add(name)
            extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            lines.append(f"{name}{extras}=={versions[name]}\n")
        elif str(requirement.specifier).startswith(">="):
            # The image's version stays, unless it is older than the version that the Dags were tested with.
            lines.append(f"{name}{requirement.specifier}\n")
    needed = needed_by(lock, own) - own - needed_by(lock, (*IMAGE_ROOTS, *CARRIED_BY_AIRFLOW))
    pins = [f"{name}=={versions[name]}\n" for name in sorted(needed)]
    return HEADER + "".join(sorted(lines)) + (NEEDED + "".join(pins) if pins else "")


def main() -> None:
    """Rewrite requirements.txt."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    (PROJECT / "requirements.txt").write_text(export())


if __name__ == "__main__":
    main()
