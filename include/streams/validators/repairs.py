"""Accept a run although its data break rules of its suite, as a repair by a person."""

from __future__ import annotations

from include.streams.operations.audit import Actor, RepairParams, RepairReport, one_line, repair_services
from include.streams.validators.results import NothingToAccept, accept, load_result


class AcceptSuite(RepairParams):
    """The parameters of `accept_suite`.

    Attributes:
        consumer: The consumer's name.
        claim: The number of the run's claim.
    """

    consumer: str
    claim: int | str


def accept_suite(params: AcceptSuite, by: Actor) -> RepairReport:
    """Accept a run whose data are unusual but correct, and close its alarm. Then somebody must clear the run.

    Only the rules that failed in the run's last check are accepted. A dry run shows the result of the check.

    Args:
        params: The consumer and the claim.
        by: Who accepts; stored with the reason.

    Returns:
        The report.

    Raises:
        Refused: The reason is empty, the run was not checked, or it has broken no rule.
        BucketError: The bucket does not exist, or may not be read.
    """
    consumer, claim = params["consumer"], params["claim"]

    def work() -> list[str]:
        if params["dry_run"]:
            return result_lines(consumer, claim)
        done = accept(consumer, claim, by=by.name, reason=one_line(params["reason"]))
        return [f"accepted by {done.by}: {rule}" for rule in done.rules] + ["now clear the run"]

    return repair_services("accept_suite", params, by, work)


def result_lines(consumer: str, claim: int | str) -> list[str]:
    """The result of the last check of a run, one rule a line.

    Args:
        consumer: The consumer's name.
        claim: The number of the run's claim.

    Raises:
        NothingToAccept: The run was not checked.
    """
    result = load_result(consumer, claim)
    if result is None:
        raise NothingToAccept(f"no suite was checked for claim {claim} of {consumer}")
    # Findings may contain text from messages. It is escaped, so that no control sequence reaches a terminal or a log.
    lines = [f"{result['suite']}: {'stopped' if result['stopped'] else 'passed'}, {result['rows']:,} rows"]
    for outcome in result["outcomes"]:
        observed = f"{outcome['observed']} (expected: {outcome['expected']})".encode("unicode_escape").decode()
        lines.append(f"{outcome['state']:12} {outcome['rule']}: {observed}")
    return lines
