"""A long history: the rows that many handled messages leave in Airflow's metadata and in the operational database.

Rows are copies of the rows of one real run, with keys of their own, so that all columns of Airflow's tables are filled
as Airflow fills them.
"""

from sqlalchemy import Connection, text

from benchmarks.bench_stack import BenchStack

# Tables of the metadata database that grow with each message: {table: {column: SQL of its value in copy n}}. Copies are
# n days and seconds in the past, in the order in which they were made.
OLD = "now() - interval '1 day' - :rows * interval '10 milliseconds' + n * interval '10 milliseconds'"
KEY = "'bench.messages-0-' || (n - 100000000)::text"
METADATA = {
    "dag_run": {"run_id": "'asset_triggered__old-' || n", "partition_key": KEY, "run_after": OLD, "queued_at": OLD},
    "task_instance": {"id": "gen_random_uuid()", "run_id": "'asset_triggered__old-' || n"},
    "asset_event": {"partition_key": KEY, "timestamp": OLD},
    "asset_partition_dag_run": {"partition_key": KEY, "created_at": OLD},
    "partitioned_asset_key_log": {"source_partition_key": KEY, "target_partition_key": KEY, "created_at": OLD},
}
TEMPLATES = {
    "dag_run": "select id from dag_run where dag_id = 'bench_message' and state = 'success' limit 1",
    "task_instance": "select id from task_instance where dag_id = 'bench_message' and state = 'success' limit 1",
    "asset_event": "select e.id from asset_event e join asset a on a.id = e.asset_id "
    "where a.name = 'bench_message' and e.partition_key is not null limit 1",
    "asset_partition_dag_run": "select id from asset_partition_dag_run where created_dag_run_id is not null limit 1",
    "partitioned_asset_key_log": "select id from partitioned_asset_key_log limit 1",
}

# Each copy refers to the copies of its own run. If all referred to the same row, PostgreSQL would expect every lookup
# to find hundreds of thousands of rows, and would read the whole table.
REFERENCES = (
    # Without statistics of the rows that this transaction has added, PostgreSQL would compare each with each.
    "analyze dag_run, asset_event, asset_partition_dag_run, partitioned_asset_key_log",
    """
    insert into dagrun_asset_event (dag_run_id, event_id)
    select run.id, event.id from dag_run run join asset_event event using (partition_key)
    where run.run_id like 'asset_triggered__old-%'
    """,
    """
    update asset_partition_dag_run made set created_dag_run_id = run.id from dag_run run
    where run.partition_key = made.partition_key and run.run_id like 'asset_triggered__old-%'
    """,
    """
    update partitioned_asset_key_log log set asset_event_id = event.id, asset_partition_dag_run_id = made.id
    from asset_event event, asset_partition_dag_run made, dag_run run
    where event.partition_key = log.source_partition_key and made.created_dag_run_id = run.id
      and run.partition_key = log.target_partition_key and run.run_id like 'asset_triggered__old-%'
    """,
)

OPERATIONS = (
    """
    insert into inbox (consumer, topic_id, partition, "offset", topic, contract, event_id, outcome, run_id, recorded_at)
    select consumer, topic_id, partition, n - 100000000, topic, contract, 'old-' || n, outcome, 'old-' || n,
           now() - interval '1 day'
    from inbox cross join generate_series(1, :rows) n
    where (consumer, topic_id, partition, "offset") = (
        select consumer, topic_id, partition, "offset" from inbox where consumer = 'bench_messages' limit 1
    )
    """,
    """
    with made as (
        insert into claims (consumer, run_id, claimed_at, closed_at)
        select 'bench_messages', 'old-' || n, now() - interval '1 day', now() - interval '1 day'
        from generate_series(1, :rows, 200) n returning id, run_id
    ), ranges as (
        insert into claim_ranges (claim_id, topic, partition, topic_id, start_offset, readable_from, end_offset)
        select made.id, old.topic, old.partition, old.topic_id, made.number, made.number, made.number + 200
        from (select id, substr(run_id, 5)::bigint - 100000000 as number from made) made
        cross join (select topic, partition, topic_id from inbox where consumer = 'bench_messages' limit 1) old
        returning claim_id, topic, partition, start_offset
    )
    insert into handled_ranges (claim_id, topic, partition, start_offset, end_offset)
    select claim_id, topic, partition, start_offset + n, start_offset + n + 1
    from ranges cross join generate_series(0, 199) n
    """,
)


def add_history(bench: BenchStack, rows: int) -> None:
    """Add the rows that `rows` messages of bench_message leave, each with a run of its own."""
    with bench.metadata.begin() as connection:
        add_metadata(connection, rows)
    with bench.operations.begin() as connection:
        for statement in OPERATIONS:
            connection.execute(text(statement), {"rows": rows})
    # Rows that are inserted one by one are vacuumed in between. Otherwise the vacuum would run during a measurement.
    for database in (bench.metadata, bench.operations):
        with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("vacuum (analyze)"))


def add_metadata(connection: Connection, rows: int) -> None:
    """The part in Airflow's metadata database."""
    for table, changes in METADATA.items():
        _copy_row(connection, table, changes, rows)
    for statement in REFERENCES:
        connection.execute(text(statement))


def _copy_row(connection: Connection, table: str, changes: dict[str, str], rows: int) -> None:
    """Copy the template row of a table; ids come from the table's sequence unless `changes` says otherwise."""
    columns = connection.execute(
        text(
            "select column_name from information_schema.columns "
            "where table_name = :table and table_schema = current_schema() order by ordinal_position"
        ),
        {"table": table},
    ).scalars()
    values = {c: changes.get(c, f'old."{c}"') for c in columns if c != "id" or "id" in changes}
    names = ", ".join(f'"{column}"' for column in values)
    template = connection.scalar(text(TEMPLATES[table]))
    if template is None:
        raise RuntimeError(f"no row of {table} to copy: send a message first")
    statement = (
        f"insert into {table} ({names}) select {', '.join(values.values())} "
        f"from {table} old cross join generate_series(1, :rows) n where old.id = :template"
    )
    connection.execute(text(statement), {"rows": rows, "template": template})
