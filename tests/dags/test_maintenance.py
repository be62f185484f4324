"""Every Iceberg table that the lane writes is looked after; one that is left out has a snapshot more with each run."""

from __future__ import annotations

from include.landing.tables import clean_table
from include.water.flows.tables import TABLES
from include.water.topics import METER_READINGS
from include.water.usage.tables import CUSTOMER_DAYS


def test_every_table_that_is_written_is_kept_small(dag_files):
    (dag,) = (file.dag for file in dag_files if file.dag.dag_id == "maintain_tables")
    kept = dag.get_task("keep_table").op_kwargs_expand_input.value["name"]
    assert set(kept) == {clean_table(METER_READINGS), *TABLES, CUSTOMER_DAYS}
