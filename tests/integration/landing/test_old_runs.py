"""A run that was in progress during a deploy: its XComs and staging files are those of the release before."""

from __future__ import annotations

import io
from typing import Any

import pyarrow.parquet
import pytest

from include.streams.landing.balance import finish
from include.streams.landing.clean import commit_clean
from include.streams.landing.planning import claim_landed
from include.streams.landing.tables import load_landing_table
from include.streams.landing.validation import validate_unit
from include.streams.validators import rows
from tests.integration.kafka.conftest import open_claims
from tests.integration.landing.test_run import clean_rows, consumer, land, sale, sales

pytestmark = pytest.mark.integration
__all__ = ["consumer", "sales"]


def old_unit(unit: Any) -> Any:
    """The unit as the plan of 02b24c5 wrote it."""
    ranges = [{name: part[name] for name in ("partition", "start", "end")} for part in unit["ranges"]]
    return {**{name: unit[name] for name in ("claim_id", "unit", "files")}, "ranges": ranges}


def without_not_wanted(counts: Any) -> Any:
    return {name: count for name, count in counts.items() if name != "not_wanted"}


def make_old(topic, file: str) -> None:
    """Remove the column that staging files of 02b24c5 do not have."""
    store = load_landing_table(topic).io.get_fs("gs")  # type: ignore[attr-defined]
    table = pyarrow.parquet.read_table(io.BytesIO(store.cat_file(file)))
    if rows.NOT_WANTED in table.column_names:
        content = io.BytesIO()
        pyarrow.parquet.write_table(table.drop_columns([rows.NOT_WANTED]), content)
        store.pipe_file(file, content.getvalue())


@pytest.fixture
def lane(consumer, send):
    """A lane with two files, of which the second holds an invalid record and one that needs the parser."""
    lane = consumer()
    values = [sale(1), sale(2), sale(3, amount=1_000), sale(4).replace(b"1,", b"1 ,", 1)]
    send(lane.topic, *values)
    land(lane.topic, 0, 0, *values[:2])
    land(lane.topic, 0, 2, *values[2:])
    return lane


@pytest.mark.parametrize("deployed_after", ["plan", "one unit", "all units", "commit"])
def test_a_run_of_the_release_before_finishes(lane, deployed_after):
    first, second = claim_landed(lane, "run-1")
    if deployed_after == "plan":
        first, second = old_unit(first), old_unit(second)
    elif deployed_after == "one unit":
        second = old_unit(second)
    validated = [validate_unit(lane, unit, "run-1") for unit in (first, second)]
    number = {"one unit": 1, "all units": 2, "commit": 2}.get(deployed_after, 0)
    for result in validated[:number]:
        for file in result["files"]:
            make_old(lane.topic, file)
    results = [*map(without_not_wanted, validated[:number]), *validated[number:]]
    summary = commit_clean(lane, results, "run-1")
    if deployed_after == "commit":
        summary = without_not_wanted(summary)
    assert finish(lane, summary, "run-1")["not_wanted"] == 0
    assert clean_rows(lane.topic) == [(0, 0, "1"), (0, 1, "2"), (0, 3, "4")]
    assert open_claims(lane) == 0
