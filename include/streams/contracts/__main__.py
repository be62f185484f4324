"""`python -m include.streams.contracts write|check`: the JSON Schemas that are derived from the contracts.

write  updates the files in contracts/ from the registry.
check  exits with 1 if a file is stale, a field has no bounds, or a contract has changed in a way that breaks
       programs that rely on the last committed version.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tomllib
from pathlib import Path

from include.streams.contracts import Registry, compatibility, schemas

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / "contracts"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m include.streams.contracts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("write", "check"))
    parser.add_argument("--registry", metavar="MODULE:NAME", help="default: [tool.contracts] in pyproject.toml")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        registry = load_registry(options.registry or default_registry())
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

    Raises:
        ValueError: The reference has another form.
        TypeError: The named object is not a Registry.
    """
    module, _, name = reference.partition(":")
    if not name:
        raise ValueError(f"{reference!r} is not of the form package.module:NAME")
    registry = getattr(importlib.import_module(module), name)
    if not isinstance(registry, Registry):
        raise TypeError(f"{reference} is a {type(registry).__name__}, not a Registry")
    return registry


def _say(lines: list[str]) -> None:
    sys.stdout.write("\n".join(lines) + "\n")


def default_registry() -> str:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["tool"]["contracts"]["registry"]


if __name__ == "__main__":
    sys.exit(main())
