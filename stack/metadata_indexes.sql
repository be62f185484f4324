-- Indexes for one Dag run per message that Airflow's metadata database lacks. Without them, Airflow 3.3 reads the whole
-- table of keys whenever it looks up a key, in every loop of the scheduler (keys without a run), and for each run that
-- it deletes. The indexes do not disturb Airflow's migrations. docs/runbooks/metadata-grows.md has the figures.
create index if not exists ix_asset_partition_dag_run_key on asset_partition_dag_run (partition_key, target_dag_id);
create index if not exists ix_asset_partition_dag_run_pending on asset_partition_dag_run (created_at, id)
    where created_dag_run_id is null;
create index if not exists ix_asset_partition_dag_run_created on asset_partition_dag_run (created_dag_run_id);
