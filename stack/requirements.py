"""Write requirements.txt, which the Astro Runtime image installs, from requirements.lock.

Only what pyproject.toml names itself and the image does not carry is written, each at the lock's version. The full
lock would pin Airflow's own dependencies against the image's, and the two differ.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent

# The image carries Airflow, and with it these: a pin here would replace a part of Airflow under it.
CARRIED_BY_AIRFLOW = frozenset(
    {"alembic", "apache-airflow", "apache-airflow-providers-standard", "pydantic", "sqlalchemy"}
)

# The image's Python and system: the lock serves several, and picks some versions by marker.
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
# What the Dags need beyond Astro Runtime. Written by `python -m stack.requirements` from pyproject.toml and
# requirements.lock: change it there.
"""


def locked_versions(lock: str) -> dict[str, str]:
    """Return name -> version for the image's Python from the text of a `uv pip compile` lock."""
    versions = {}
    for line in lock.splitlines():
        if not line or line[0] in " #":
            continue  # hashes and the "via" comments
        requirement = Requirement(line.removesuffix("\\").strip())
        if requirement.marker is None or requirement.marker.evaluate(IMAGE):
            versions[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    return versions


def export(project: Path = PROJECT) -> str:
    """Return the text of requirements.txt. Raises KeyError when the lock lacks a direct dependency."""
    direct = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
    versions = locked_versions((project / "requirements.lock").read_text())
    lines = []
    for requirement in map(Requirement, direct):
        name = canonicalize_name(requirement.name)
        if name in CARRIED_BY_AIRFLOW:
            continue
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        lines.append(f"{name}{extras}=={versions[name]}\n")
    return HEADER + "".join(sorted(lines))


def main() -> None:
    """Rewrite requirements.txt."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    (PROJECT / "requirements.txt").write_text(export())


if __name__ == "__main__":
    main()
