"""Commands for the models in the bucket for artifacts: `python -m include.streams.models --help`."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict

from include.streams.operations.commands import BY_HAND, acting_user, add_repair_arguments, run


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return run(lambda: options.action(options), _expected)


def _expected() -> tuple[type[Exception], ...]:
    from google.api_core.exceptions import GoogleAPIError
    from sqlalchemy.exc import DBAPIError

    from include.streams.lake.buckets import BucketError
    from include.streams.models.store import ChampionChanged, ModelError

    return BucketError, ChampionChanged, DBAPIError, ModelError, GoogleAPIError, ValueError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m include.streams.models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, action: Callable[[argparse.Namespace], list[str]], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(action=action)
        return command

    listing = add("list", _list, "list the models; with a name, its versions, oldest first")
    listing.add_argument("name", nargs="?")
    show = add("show", _show, "print a version's card; without a version, champion.json")
    show.add_argument("name")
    show.add_argument("version", nargs="?")
    rollback = add(
        "rollback", _roll_back, "use an earlier champion again, from now until a better candidate passes the gate"
    )
    rollback.add_argument("name")
    rollback.add_argument("version", nargs="?", help="default: the previous champion; none: use no model")
    add_repair_arguments(rollback, reason="the reason; it is stored with the rollback", default=BY_HAND)
    return parser


def _list(options: argparse.Namespace) -> list[str]:
    from include.streams.lake.buckets import bucket
    from include.streams.models.repairs import version_lines
    from include.streams.models.store import ModelStore, names

    remote = bucket()
    if options.name is None:
        models = ((name, ModelStore(name, remote).history().version) for name in names(remote))
        return [f"{name}  {version or 'no champion'}" for name, version in models] or ["no model has been trained"]
    store = ModelStore(options.name, remote)
    return version_lines(store, store.history())


def _show(options: argparse.Namespace) -> list[str]:
    from include.streams.lake.buckets import bucket
    from include.streams.models.store import ModelStore

    store = ModelStore(options.name, bucket())
    if options.version is not None:
        return [json.dumps(asdict(store.card(options.version)), indent=2)]
    history = store.history()
    return [
        json.dumps({"version": history.version, **asdict(history)}, indent=2)
        if history.periods
        else f"no version of {options.name} has been in use"
    ]


def _roll_back(options: argparse.Namespace) -> list[str]:
    from include.streams.lake.buckets import bucket
    from include.streams.models.repairs import RollBack, roll_back
    from include.streams.operations.audit import Actor

    params = RollBack(model=options.name, version=options.version or "", reason=options.reason, dry_run=options.dry_run)
    return roll_back(params, Actor(acting_user(options.by)), bucket=bucket())["lines"]


if __name__ == "__main__":
    sys.exit(main())
