"""Runs of Dags, from the tables of Airflow's metadata database.

Only processes that may read that database can use this: the api-server, and a shell with Airflow's settings. A task
cannot. Airflow's REST API would need a login, and one request for each Dag and state.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

# An outage must not block the caller for long.
CONNECT_SECONDS, STATEMENT_MS = 5, 5_000


class MetadataUnreachable(Exception):
    """The metadata database cannot be queried here; the text says why."""


def dags_of_runs(run_ids: Collection[str], since: datetime) -> dict[str, list[dict[str, str]]]:
    """Look up the Dags and states of runs.

    Args:
        run_ids: The runs' ids.
        since: Runs with a `run_after` before this time are not found.

    Returns:
        {run id: [{"dag_id", "state"}]}; several if runs of several Dags have the id.

    Raises:
        MetadataUnreachable: As for `run_states`.
    """
    statement = "select dag_id, run_id, state from dag_run where run_after >= :since and run_id = any(:run_ids)"
    found: dict[str, list[dict[str, str]]] = {}
    for dag_id, run_id, state in _query(statement, since=since, run_ids=list(run_ids)):
        found.setdefault(run_id, []).append({"dag_id": dag_id, "state": state})
    return found


def run_states(since: datetime) -> dict[str, dict[str, int]]:
    """Count runs by Dag and state.

    Args:
        since: Runs with a `run_after` before this time are not counted, unless they are queued or running.

    Returns:
        {Dag: {state: runs}}, by the Dag's id.

    Raises:
        MetadataUnreachable: There is no PostgreSQL database of Airflow, or it does not answer.
    """
    # Each condition has its own index, so old runs are not read.
    rows = _query(
        """
        select dag_id, state, count(*) from dag_run
        where run_after >= :since or state = 'queued' or state = 'running'
        group by dag_id, state order by dag_id, state
        """,
        since=since,
    )
    states: dict[str, dict[str, int]] = {}
    for dag, state, number in rows:
        states.setdefault(dag, {})[state] = number
    return states


def run_state(dag_id: str, run_id: str) -> str | None:
    """The state of a run.

    Args:
        dag_id: The Dag's id.
        run_id: The run's id.

    Returns:
        The state, such as "running"; None if there is no such run.

    Raises:
        MetadataUnreachable: There is no PostgreSQL database of Airflow, or it does not answer.
    """
    rows = _query("select state from dag_run where dag_id = :dag_id and run_id = :run_id", dag_id=dag_id, run_id=run_id)
    return rows[0][0] if rows else None


def _query(statement: str, **parameters: Any) -> Sequence[Any]:
    from airflow.configuration import conf
    from sqlalchemy import create_engine, text
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    url = make_url(conf.get("database", "sql_alchemy_conn", fallback="") or "sqlite://")
    if url.get_backend_name() != "postgresql":
        raise MetadataUnreachable("no settings of an Airflow database here: AIRFLOW__DATABASE__SQL_ALCHEMY_CONN")
    url = url.set(drivername="postgresql+psycopg")
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_SECONDS})
    try:
        with engine.begin() as connection:
            connection.execute(text(f"set local statement_timeout = {STATEMENT_MS}"))
            return connection.execute(text(statement), parameters).all()
    except SQLAlchemyError as error:
        raise MetadataUnreachable(str(getattr(error, "orig", error))) from None
