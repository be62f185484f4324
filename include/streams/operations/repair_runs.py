"""Repairs as Dag runs: the parameters that all of them have, and the call of a repair in a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from airflow.sdk import Param

Report = TypeVar("Report")

# Arguments of a repair's Dag. A person starts it, so it is not paused when it is new: Airflow would queue the run until
# somebody unpauses the Dag.
REPAIR: dict[str, Any] = {
    "schedule": None,
    "catchup": False,
    "max_active_runs": 1,
    "is_paused_upon_creation": False,
}


def repair_params(**own: Param) -> dict[str, Param]:
    """The parameters of a repair's Dag: its own, then `reason` and `dry_run`.

    Args:
        own: The repair's own parameters.
    """
    from airflow.sdk import Param

    return {
        **own,
        "reason": Param(
            "", type="string", maxLength=500, description="why; it is recorded. Needed unless dry_run is on"
        ),
        "dry_run": Param(True, type="boolean", description="only show what would be done; the default"),
    }


def choice(names: Iterable[str], description: str, *, default: str | None = None) -> Param:
    """A parameter whose value is one of these names.

    Args:
        names: The names.
        description: What the parameter means.
        default: The default; None for a parameter that must be given.
    """
    from airflow.sdk import Param

    schema: dict[str, Any] = {"type": "string", "enum": list(names), "description": description}
    return Param(**schema) if default is None else Param(default, **schema)


def optional(description: str, **schema: Any) -> Param:
    """A parameter that may be left out: its default is null.

    Args:
        description: What the parameter means.
        schema: JSON Schema of a given value, such as `type="integer"`, `minimum=0`, or `enum=[...]`.
    """
    from airflow.sdk import Param

    if "enum" in schema:
        schema["enum"] = [None, *schema["enum"]]
    return Param(None, **{**schema, "type": ["null", schema.get("type", "string")]}, description=description)


def letters() -> Param:
    """The parameter `letters`: dead letters by their positions in the dead-letter topic."""
    from airflow.sdk import Param

    return Param(
        [],
        type="array",
        items={"type": "string", "pattern": "^[0-9]{1,9}@[0-9]{1,18}$"},
        maxItems=10_000,
        description="only these, each partition@offset in the dead-letter topic, as a dry run lists them",
    )


def name(description: str, *, default: str | None = None, examples: Iterable[str] = ()) -> Param:
    """A parameter for a name: one line without spaces at its ends. Airflow's form suggests the examples.

    Args:
        description: What the parameter means.
        default: The default; None for a parameter that must be given.
        examples: Names that exist.
    """
    from airflow.sdk import Param

    suggested = {"examples": list(examples)} if examples else {}
    schema = {"type": "string", "maxLength": 300, "description": description, **suggested}
    if default is None:
        return Param(**schema, minLength=1, pattern=r"^\S(.*\S)?$")
    return Param(default, **schema)


def run_repair(repair: Callable[..., Report], params: Any, dag_run: Any, **more: Any) -> Report:
    """Do a repair in a task, for the user who triggered the run.

    Args:
        repair: A function `repair(params, by, **more)`.
        params: The run's parameters.
        dag_run: The run, from the task's context.
        more: Further arguments of the repair.

    Returns:
        The repair's report.

    Raises:
        AirflowFailException: The repair is refused; Airflow does not retry the task.
        Exception: An error of a service; Airflow retries the task.
    """
    from airflow.sdk.exceptions import AirflowFailException

    from include.streams.operations.audit import Actor, Refused

    try:
        return repair(dict(params), Actor.of_run(dag_run), **more)
    except Refused as refused:
        raise AirflowFailException(str(refused)) from None
