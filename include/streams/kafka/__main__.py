"""Commands for consumers: `python -m include.streams.kafka --help`."""

import argparse
import sys

from include.streams.kafka.connection import CONN_ID
from include.streams.operations.commands import BY_HAND, acting_user, add_repair_arguments, run


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return run(lambda: options.action(options), _expected)


def _expected() -> tuple[type[Exception], ...]:
    from confluent_kafka import KafkaException
    from sqlalchemy.exc import OperationalError, ProgrammingError

    return KafkaException, OperationalError, ProgrammingError, ValueError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m include.streams.kafka", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    reset = commands.add_parser(
        "reset",
        help="resume a consumer after its topic was deleted and recreated, or its log was truncated",
        description="Delete the consumer's positions in the topic and start at the beginning of the current log. Open "
        "claims on offsets that are gone are closed, and the alarm messages_lost names the lost offsets.",
    )
    reset.set_defaults(action=_reset)
    reset.add_argument("consumer")
    reset.add_argument("topic")
    reset.add_argument("--conn-id", default=CONN_ID, help="Airflow connection (default: %(default)s)")
    add_repair_arguments(reset, reason="the reason", default=BY_HAND)
    move = commands.add_parser(
        "move-claim",
        help="give the open claim of a deleted run to another run",
        description="Give an open claim, whose run was deleted, to a run with another id. Then start the consumer's "
        "Dag with this run id: the run handles the messages that are left.",
    )
    move.set_defaults(action=_move)
    move.add_argument("consumer")
    move.add_argument("run_id", help="the run that owns the claim")
    move.add_argument(
        "--owner-ended",
        action="store_true",
        help="you have checked that the run has ended or was deleted; needed where Airflow's database cannot be read",
    )
    add_repair_arguments(move, reason="the reason", default=BY_HAND)
    return parser


def _reset(options: argparse.Namespace) -> list[str]:
    from include.streams.kafka.reset import ResetConsumer, reset
    from include.streams.operations.audit import Actor

    params = ResetConsumer(
        consumer=options.consumer, topic=options.topic, reason=options.reason, dry_run=options.dry_run
    )
    return reset(params, Actor(acting_user(options.by)), conn_id=options.conn_id)["lines"]


def _move(options: argparse.Namespace) -> list[str]:
    from include.streams.compat.metadata import MetadataUnreachable, run_state
    from include.streams.kafka.moving import MoveClaim, move
    from include.streams.operations.audit import Actor

    def state_of(dag_id: str, run_id: str) -> str | None:
        try:
            return run_state(dag_id, run_id)
        except MetadataUnreachable as unreachable:
            if options.owner_ended:
                return None
            raise ValueError(
                f"whether run {run_id} has ended is not known ({unreachable}): look it up in Airflow, then add "
                "--owner-ended; or use the Dag move_claim"
            ) from None

    params = MoveClaim(consumer=options.consumer, run_id=options.run_id, reason=options.reason, dry_run=options.dry_run)
    report = move(params, Actor(acting_user(options.by)), state_of=state_of)
    return [*report["lines"], f"now start the Dag {report['dag_id']} with the run id {report['new_run_id']}"]


if __name__ == "__main__":
    sys.exit(main())
