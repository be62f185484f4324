"""`make revision`: a revision for the tables of a package that have none yet."""

from __future__ import annotations

from pathlib import Path

from scaffold.errors import Refused
from scaffold.trial import trial


def make_revision(root: Path, package: str) -> list[str]:
    """Write a revision that creates the package's tables that no revision creates.

    Args:
        root: The project's folder.
        package: The package's folder in `include/`.

    Returns:
        What to print.

    Raises:
        Refused: There is no such package.
    """
    if not (root / "include" / package / "tables.py").exists():
        raise Refused(f"include/{package}/tables.py does not exist; give a package of include/ with PACKAGE=")
    with trial(root) as copy:
        copy.run("writing the revision", "python", "-m", "scaffold.derived", package)
        copy.tidy(copy.changed())
        written = copy.changed()
        copy.apply()
    if not any("/migrations/versions/" in path for path in written):
        return [
            *(f"wrote {path}" for path in written),
            f"every table of include/{package}/tables.py has a revision. For a new column, copy the last revision of "
            "the package and write `op.add_column`",
        ]
    return [f"wrote {path}" for path in written]
