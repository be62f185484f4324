"""Offsets on record as lost, or as holding no record, that land after all; and dead letters at offsets that are lost.

Files land late when the sink's coordinator commits an old file; a run that is cleared finds them, or its rows removed.
"""

from __future__ import annotations

import pytest

from include.streams.landing import gaps
from include.streams.landing.balance import DoesNotBalance, finish
from include.streams.landing.clean import commit_clean
from include.streams.landing.gaps import State
from include.streams.landing.tables import load_landing_table, raw_table, topic_id
from include.streams.landing.upkeep import maintain_landing_table
from include.streams.landing.validation import validate_unit
from tests.integration.kafka.conftest import open_claims
from tests.integration.landing.conftest import alarms_of, delete_records, plan_run, remove_file
from tests.integration.landing.test_run import clean_rows, consumer, counts, land, run, sale, sales

pytestmark = pytest.mark.integration
__all__ = ["consumer", "sales"]

WHOLE = {"landed": 5, "clean": 5, "dead_lettered": 0, "duplicates": 0, "without_record": 0}


@pytest.fixture(params=[State.lost, State.no_record])
def lane(request, consumer, send, admin):
    """A lane whose topic has five messages; the first two have not landed, and are settled."""
    lane = consumer()
    values = [sale(number) for number in range(5)]
    send(lane.topic, *values)
    land(lane.topic, 0, 2, *values[2:])
    if request.param == State.lost:
        delete_records(admin, lane.topic, 0, 2)
    else:
        # As after a compaction.
        gaps.record_outcome(lane.topic.name, topic_id(load_landing_table(lane.topic)), 0, State.no_record, [(0, 2)])
    return lane


def land_the_rest(lane) -> None:
    land(lane.topic, 0, 0, sale(0), sale(1))


def test_a_cleared_run_reads_offsets_that_landed_since(lane):
    assert counts(run(lane)) == {**WHOLE, "landed": 3, "clean": 3, "without_record": 2}
    land_the_rest(lane)
    assert counts(run(lane)) == WHOLE
    assert clean_rows(lane.topic) == [(0, number, str(number)) for number in range(5)]
    assert open_claims(lane) == 0


def test_offsets_that_land_during_their_run_fail_it_until_it_is_cleared(lane):
    units = plan_run(lane, "run-1")
    summary = commit_clean(lane, [validate_unit(lane, unit, "run-1") for unit in units], "run-1")
    land_the_rest(lane)
    with pytest.raises(DoesNotBalance, match="landed = 3, and there are 5"):
        finish(lane, summary, "run-1")
    assert open_claims(lane) == 1
    assert counts(run(lane)) == WHOLE
    assert open_claims(lane) == 0
    assert not alarms_of(lane.name)["run_does_not_balance"][1]


def test_a_run_cleared_after_its_rows_were_removed_handles_the_rest(consumer, send, admin):
    lane = consumer()
    send(lane.topic, sale(0, amount=-1), sale(1), sale(2))
    send(lane.topic, sale(3, amount=-1), partition=1)
    land(lane.topic, 0, 0, sale(0, amount=-1), sale(1))
    land(lane.topic, 0, 2, sale(2))
    land(lane.topic, 1, 0, sale(3, amount=-1))
    assert counts(run(lane)) == {**WHOLE, "landed": 4, "clean": 2, "dead_lettered": 2}
    for task in list(load_landing_table(lane.topic).scan().plan_files()):
        if task.file.partition[0] == 1 or task.file.record_count == 2:
            remove_file(lane.topic, task.file.file_path)
    delete_records(admin, lane.topic, 0, 2)
    delete_records(admin, lane.topic, 1, 1)
    # The dead letters stay recorded, and their offsets have no rows.
    assert counts(run(lane)) == {**WHOLE, "landed": 1, "clean": 1, "without_record": 3}
    assert open_claims(lane) == 0


def test_lost_offsets_that_land_later_are_reported_once_with_their_runs(consumer, send, admin):
    lane = consumer()
    values = [sale(number) for number in range(6)]
    send(lane.topic, *values)
    land(lane.topic, 0, 3, *values[3:])
    delete_records(admin, lane.topic, 0, 3)
    run(lane)
    table = raw_table(lane.topic)
    assert "They are lost" in alarms_of(table)["messages_lost"][0]
    maintain_landing_table(lane.topic, [lane])
    assert "after all" not in alarms_of(table)["messages_lost"][0]
    land(lane.topic, 0, 1, sale(1), sale(2))
    for _ in range(2):
        maintain_landing_table(lane.topic, [lane])
    message, is_open = alarms_of(table)["messages_lost"]
    assert message.count("2 offsets") == message.count("have landed after all: [1, 3)") == 1
    assert f"clear the runs that had claimed them: run-1 of {lane.name}" in message
    assert is_open
    lost = gaps.history(topic_id(load_landing_table(lane.topic)), [State.lost])
    assert [(row.start_offset, row.end_offset) for row in lost] == [(0, 1)]
    assert counts(run(lane)) == {**WHOLE, "without_record": 1}
