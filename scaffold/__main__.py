"""`python -m scaffold topic`, `revision` and `remove-example`: the commands behind the targets of make."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scaffold.errors import Refused
from scaffold.journal import alone

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ("NAME", "FROM", "SCHEMA", "TOPIC", "LANE", "SHAPE", "PACKAGE", "KEY", "ID", "TYPE", "FIELDS")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scaffold", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    topic = commands.add_parser("topic", help="write all files of a new topic")
    for option in OPTIONS:
        topic.add_argument(f"--{option}")
    revision = commands.add_parser("revision", help="write the Alembic revision of tables that have none")
    revision.add_argument("--PACKAGE", required=True)
    removal = commands.add_parser("remove-example", help="remove include/water and all files that belong to it")
    removal.add_argument("--force", action="store_true", help="also with uncommitted changes")
    options = parser.parse_args(arguments)
    try:
        with alone(ROOT) as restored:
            if restored:
                sys.stdout.write(f"took back {len(restored)} files that a killed command had written or deleted\n")
            lines = _run(options)
    except Refused as refused:
        sys.stderr.write(f"{refused}\n")
        return 2
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _run(options: argparse.Namespace) -> list[str]:
    if options.command == "remove-example":
        from scaffold.removal import remove_example

        return remove_example(ROOT, is_forced=options.force)
    if options.command == "revision":
        from scaffold.revisions import make_revision

        return make_revision(ROOT, options.PACKAGE)
    return _topic(options)


def _topic(options: argparse.Namespace) -> list[str]:
    from scaffold.choosing import Wishes
    from scaffold.topic import USAGE, Order, make

    if not any(getattr(options, name) for name in OPTIONS):
        raise Refused(USAGE)
    order = Order(
        name=options.NAME or None,
        from_=Path(options.FROM) if options.FROM else None,
        schema=Path(options.SCHEMA) if options.SCHEMA else None,
        topic=options.TOPIC or None,
        lane=options.LANE or "event",
        shape=options.SHAPE or None,
        package=options.PACKAGE or None,
        wishes=Wishes(
            options.ID or None, options.KEY or None, options.TYPE or None, tuple((options.FIELDS or "").split())
        ),
    )
    return make(order, ROOT)


if __name__ == "__main__":
    sys.exit(main())
