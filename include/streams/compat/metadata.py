"""Runs of Dags, from the tables of Airflow's metadata database.

Only processes that may read that database can use this: the api-server, and a shell with Airflow's settings. A task
cannot. Airflow's REST API would need a login, and one request for each Dag and state.
"""

from datetime import datetime

# An outage must not block the caller for long.
CONNECT_SECONDS, STATEMENT_MS = 5, 5_000


class MetadataUnreachable(Exception):
    """The metadata database cannot be queried here; the text says why."""


def run_states(since: datetime) -> dict[str, dict[str, int]]:
    """Count runs by Dag and state.

    Args:
        since: Runs with a `run_after` before this time are not counted, unless they are queued or running.

    Returns:
        {Dag: {state: runs}}, by the Dag's id.

    Raises:
        MetadataUnreachable: There is no PostgreSQL database of Airflow, or it does not answer.
    """
    from airflow.configuration import conf
    from sqlalchemy import create_engine, text
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    url = make_url(conf.get("database", "sql_alchemy_conn", fallback="") or "sqlite://")
    if url.get_backend_name() != "postgresql":
        raise MetadataUnreachable("no settings of an Airflow database here: AIRFLOW__DATABASE__SQL_ALCHEMY_CONN")
    # Each condition has its own index, so old runs are not read.
    statement = text("""
        select dag_id, state, count(*) from dag_run
        where run_after >= :since or state = 'queued' or state = 'running'
        group by dag_id, state order by dag_id, state
    """)
    url = url.set(drivername="postgresql+psycopg")
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_SECONDS})
    states: dict[str, dict[str, int]] = {}
    try:
        with engine.begin() as connection:
            connection.execute(text(f"set local statement_timeout = {STATEMENT_MS}"))
            for dag, state, number in connection.execute(statement, {"since": since}):
                states.setdefault(dag, {})[state] = number
    except SQLAlchemyError as error:
        raise MetadataUnreachable(str(getattr(error, "orig", error))) from None
    return states
