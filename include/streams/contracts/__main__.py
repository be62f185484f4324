"""`python -m include.streams.contracts write|check`: the JSON Schemas that are derived from the contracts.

write  updates the files in contracts/ from the registry.
check  exits with 1 if a file is stale, a field has no bounds, or a contract has changed in a way that breaks
       programs that rely on the last committed version.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from pkgutil import resolve_name

from include.streams.contracts import Registry, compatibility, schemas

PROJECT = Path(__file__).resolve().parents[3]
FOLDER = PROJECT / "contracts"
# `include/project.py` is the only module that names the packages of a project.
DEFAULT_REGISTRY = "include.project:PROJECT.topics"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m include.streams.contracts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("write", "check"))
    parser.add_argument("--registry", metavar="MODULE:NAME", default=DEFAULT_REGISTRY, help="default: %(default)s")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        registry = load_registry(options.registry)
    except (ImportError, AttributeError, LookupError, TypeError, ValueError) as error:
        sys.stderr.write(f"the registry of topics cannot be loaded: {error}\n")
        return 2
    if options.action == "write":
        _say(schemas.write(registry, options.folder) or ["nothing to do"])
        return 0
    problems = check(registry, options.folder)
    _say(problems or [f"{len(registry)} contracts are as committed"])
    return 1 if problems else 0


def check(registry: Registry, folder: Path) -> list[str]:
    """Check the committed schemas, the bounds of fields, and the compatibility of changes.

    Args:
        registry: The topics with their contracts.
        folder: The folder of the committed schemas.

    Returns:
        A line for each problem; empty if there is none.
    """
    problems = [f"{line}; run `make contracts`" for line in schemas.stale(registry, folder)]
    for topic in registry:
        problems += [f"{topic.name}: {line}" for line in schemas.unbounded(schemas.schema(topic))]
    for commit in compatibility.baselines(folder):
        problems += map(str, compatibility.breaks_since(registry, folder, commit))
    return problems


def load_registry(reference: str) -> Registry:
    """Import a Registry.

    Args:
        reference: "package.module:NAME".

    Returns:
        The registry.

    Raises:
        ValueError: The reference has another form.
        TypeError: The named object is not a Registry.
    """
    if not reference.partition(":")[2]:
        raise ValueError(f"{reference!r} is not of the form package.module:NAME")
    registry = resolve_name(reference)
    if not isinstance(registry, Registry):
        raise TypeError(f"{reference} is a {type(registry).__name__}, not a Registry")
    return registry


def _say(lines: list[str]) -> None:
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
