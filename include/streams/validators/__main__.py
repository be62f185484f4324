"""Commands for checks of whole runs: `python -m include.streams.validators --help`."""

import argparse
import sys

from include.streams.operations.commands import acting_user, add_repair_arguments, run


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return run(lambda: options.action(options), _expected)


def _expected() -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import DBAPIError

    from include.streams.lake.buckets import BucketError

    return BucketError, DBAPIError, ValueError


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
    add_repair_arguments(accept, reason="the reason; it is stored, and shown on the run's page")
    for command in (show, accept):
        command.add_argument("consumer", help="the consumer's name, as in the alarm and the error")
        command.add_argument("claim", help="the claim's number")
    return parser


def _show(options: argparse.Namespace) -> list[str]:
    from include.streams.validators.repairs import result_lines
    from include.streams.validators.results import load_page

    if options.html and (page := load_page(options.consumer, options.claim)) is not None:
        return [page]
    return result_lines(options.consumer, options.claim)


def _accept(options: argparse.Namespace) -> list[str]:
    from include.streams.operations.audit import Actor
    from include.streams.validators.repairs import AcceptSuite, accept_suite

    params = AcceptSuite(consumer=options.consumer, claim=options.claim, reason=options.reason, dry_run=options.dry_run)
    return accept_suite(params, Actor(acting_user(options.by)))["lines"]


if __name__ == "__main__":
    sys.exit(main())
