"""Commands for the models in the bucket for artifacts: `python -m include.streams.models --help`."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict

from include.streams.operations.commands import run

NONE = "none"


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return run(lambda: options.action(options), _expected)


def _expected() -> tuple[type[Exception], ...]:
    from include.streams.lake.buckets import BucketError, StoreUnavailable
    from include.streams.models.store import ChampionChanged, ModelError

    return BucketError, ChampionChanged, ModelError, StoreUnavailable


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
    rollback.add_argument("version", nargs="?", help=f"default: the previous champion; {NONE!r}: use no model")
    rollback.add_argument("--reason", default="by hand", help="the reason; it is stored with the rollback")
    return parser


def _list(options: argparse.Namespace) -> list[str]:
    from include.streams.lake.buckets import bucket
    from include.streams.models.store import ModelStore, names

    remote = bucket()
    if options.name is None:
        models = ((name, ModelStore(name, remote).history().version) for name in names(remote))
        return [f"{name}  {version or 'no champion'}" for name, version in models] or ["no model has been trained"]
    store = ModelStore(options.name, remote)
    history = store.history()
    lines = []
    for card in store.cards():
        if card.version == history.version:
            state = "champion"
        elif card.version in history.withdrawn:
            state = "withdrawn"
        elif card.version in {period.version for period in history.periods}:
            state = "was champion"
        else:
            state = "passed" if card.verdict["passed"] else "did not pass"
        lines.append(f"{card.version}  {card.created_at}  score {card.metrics.get('score', float('nan')):.3f}  {state}")
    return lines or [f"no model {options.name} has been trained"]


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
    from include.streams.models.store import ModelStore

    store = ModelStore(options.name, bucket())
    history = store.history()
    version = None if options.version == NONE else options.version or history.previous()
    after = store.roll_back(version, history, reason=options.reason)
    return [
        f"in use: {after.version or 'no model, so the method without a model'}",
        f"withdrawn: {', '.join(after.withdrawn) or 'no version'}; a new candidate must beat withdrawn versions too",
    ]


if __name__ == "__main__":
    sys.exit(main())
