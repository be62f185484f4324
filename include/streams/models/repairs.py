"""Roll a model back, as a repair by a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from include.streams.operations.audit import Actor, Refused, RepairParams, RepairReport, one_line, repair_services

if TYPE_CHECKING:
    from include.streams.lake.buckets import Bucket
    from include.streams.models.store import ModelHistory, ModelStore

# As a version: use no model.
NONE = "none"


class RollBack(RepairParams):
    """The parameters of `roll_back`.

    Attributes:
        model: The model's name.
        version: An earlier champion; "" for the previous one, "none" for no model.
    """

    model: str
    version: str


def roll_back(params: RollBack, by: Actor, *, bucket: Bucket) -> RepairReport:
    """Use an earlier champion again, or no model. A dry run lists the versions, and which one would be used.

    Args:
        params: The model and the version.
        by: Who rolls back; the name is stored with the reason.
        bucket: The bucket for artifacts.

    Returns:
        The report.

    Raises:
        Refused: The reason is empty, the version cannot be used, or another process has replaced the champion.
        BucketError, GoogleAPIError: The object store does not answer, or refuses.
    """
    from include.streams.models.store import ChampionChanged, ModelError, ModelStore

    def work() -> list[str]:
        try:
            store = ModelStore(params["model"], bucket)
            history = store.history()
            version = None if params["version"] == NONE else params["version"] or history.previous()
            if params["dry_run"]:
                return [*version_lines(store, history), f"would be in use: {version or 'no model'}"]
            newest = history.periods[-1] if history.periods else None
            if newest and by.run_id and (newest.by, newest.run_id) == ("rollback", by.run_id):
                # An earlier try of this task was killed before it could record the outcome. To roll back again would
                # use the champion before the previous one.
                after = history
            else:
                reason = f"{one_line(params['reason'])} (by {by.name})"
                after = store.roll_back(version, history, reason=reason, run_id=by.run_id)
        except (ChampionChanged, ModelError) as error:
            raise Refused(str(error)) from None
        return [
            f"in use: {after.version or 'no model, so the method without a model'}",
            f"withdrawn: {', '.join(after.withdrawn) or 'no version'}; a new candidate must beat withdrawn versions "
            "too",
        ]

    return repair_services("roll_back_model", params, by, work)


def version_lines(store: ModelStore, history: ModelHistory) -> list[str]:
    """A line for each version of a model, oldest first: when it was trained, its score and its state.

    Args:
        store: The model's store.
        history: Its history.
    """
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
    return lines or [f"no model {store.name} has been trained"]
