-- Indexes that Airflow's metadata database lacks for one Dag run per message. Airflow 3.3 looks for a key among all that
-- there ever were, for keys without a run in every loop of the scheduler, and for the key of each run that it deletes:
-- each time it reads the whole table. Its migrations do not mind them. docs/runbooks/metadata-grows.md has the figures.
create index if not exists ix_asset_partition_dag_run_key on asset_partition_dag_run (partition_key, target_dag_id);
create index if not exists ix_asset_partition_dag_run_pending on asset_partition_dag_run (created_at, id)
    where created_dag_run_id is null;
create index if not exists ix_asset_partition_dag_run_created on asset_partition_dag_run (created_dag_run_id);
