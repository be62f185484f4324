"""Commands for checks of whole runs: `python -m include.streams.validators --help`."""

import argparse
import sys

from include.streams.operations.commands import acting_user, run


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return run(lambda: options.action(options), _expected)


def _expected() -> tuple[type[Exception], ...]:
    from include.streams.lake.buckets import BucketError
    from include.streams.validators.results import NothingToAccept

    return BucketError, NothingToAccept, ValueError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m include.streams.validators", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print the result of a run's last check")
    show.set_defaults(action=_show)
    show.add_argument("--html", action="store_true", help="print the HTML page instead; redirect it to a file")
    accept = commands.add_parser(
        "accept",
        help="accept a run although its data break rules",
        description="Record that the data of a run are unusual but correct, with the person's name, the reason and the "
        "broken rules. Then clear the run: it passes, unless it breaks other rules.",
    )
    accept.set_defaults(action=_accept)
    accept.add_argument("--reason", required=True, help="the reason; it is stored, and shown on the run's page")
    accept.add_argument("--by", default=None, help="the person who decides (default: the user who runs the command)")
    for command in (show, accept):
        command.add_argument("consumer", help="the consumer's name, as in the alarm and the error")
        command.add_argument("claim", help="the claim's number")
    return parser


def _show(options: argparse.Namespace) -> list[str]:
    from include.streams.validators.results import NothingToAccept, load_page, load_result

    if options.html and (page := load_page(options.consumer, options.claim)) is not None:
        return [page]
    result = load_result(options.consumer, options.claim)
    if result is None:
        raise NothingToAccept(f"no suite was checked for claim {options.claim} of {options.consumer}")
    # Findings may contain text from messages. It is escaped, so that no control sequence reaches the terminal.
    lines = [f"{result['suite']}: {'stopped' if result['stopped'] else 'passed'}, {result['rows']:,} rows"]
    for outcome in result["outcomes"]:
        observed = f"{outcome['observed']} (expected: {outcome['expected']})".encode("unicode_escape").decode()
        lines.append(f"{outcome['state']:12} {outcome['rule']}: {observed}")
    return lines


def _accept(options: argparse.Namespace) -> list[str]:
    from include.streams.validators.results import accept

    done = accept(options.consumer, options.claim, by=acting_user(options.by), reason=options.reason)
    return [f"accepted by {done.by}: {rule}" for rule in done.rules] + ["now clear the run"]


if __name__ == "__main__":
    sys.exit(main())
