"""The XComs between the tasks of the standard lane, as JSON. The ends of ranges are exclusive."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from include.streams.lake.offsets import LogRange


class RepairedGaps(TypedDict):
    """Counts of the offsets that `repair_gaps` has settled.

    Attributes:
        appended: Offsets whose records were read from Kafka and appended.
        without_record: Offsets that hold no record.
        lost: Offsets that retention has removed.
    """

    appended: int
    without_record: int
    lost: int


class PlannedFile(TypedDict):
    """Offsets [start, end) of one data file that a unit reads.

    `version` is the version of a plain object that was planned. A data file of a table never changes, and has none.
    """

    path: str
    partition: int
    start: int
    end: int
    version: NotRequired[str]


class TableColumn(TypedDict):
    """A column of the landing table: its id and its Iceberg type."""

    id: int
    name: str
    type: str


class WorkUnit(TypedDict):
    """The work of one mapped task, with everything that the task needs from the plan.

    Attributes:
        claim_id: The run's claim.
        unit: The unit's number.
        ranges: The unit's offsets. All units and the ranges without any record together are the claim's ranges.
        files: The files that hold the records of these offsets.
        staging: The address of the folder of the claim's staging files.
        columns: The columns of the landing table.
    """

    claim_id: int
    unit: int
    ranges: list[LogRange]
    files: list[PlannedFile]
    staging: str
    columns: list[TableColumn]


class ValidatedUnit(TypedDict):
    """The result of one mapped task.

    Attributes:
        unit: The unit's number.
        files: The addresses of its staging files.
        landed: Offsets with a row, each counted once.
        good: Those of them whose message meets its contract.
        dead_lettered: Those of them that are dead letters.
        not_wanted: Those of them whose message no contract of the topic's union takes.
        without_record: Offsets of the ranges that have no row.
        repeated: Rows that were dropped because their offset had landed more than once.
    """

    unit: int
    files: list[str]
    landed: int
    good: int
    dead_lettered: int
    not_wanted: int
    without_record: int
    repeated: int


class RunSummary(TypedDict):
    """What a run has committed to the clean table.

    Attributes:
        claim_id: The run's claim.
        run_id: The Dag run.
        table: The clean table's identifier.
        ranges: The claim's ranges.
        landed: As in `ValidatedUnit`, of all units.
        dead_lettered: As in `ValidatedUnit`, of all units, with the conflicting rows.
        not_wanted: As in `ValidatedUnit`, of all units.
        without_record: As in `ValidatedUnit`, of all ranges.
        repeated: As in `ValidatedUnit`, of all units.
        clean: Rows that were added to the clean table.
        duplicates: Rows whose event was already in the table or in an earlier row of the run.
        days: The first and the last day of the event times (ISO format); empty without event times.
    """

    claim_id: int
    run_id: str
    table: str
    ranges: list[LogRange]
    landed: int
    dead_lettered: int
    not_wanted: int
    without_record: int
    repeated: int
    clean: int
    duplicates: int
    days: list[str]


class FinishedRun(TypedDict):
    """The metadata of the asset event at the end of a run: landed = clean + dead_lettered + duplicates + not_wanted."""

    ranges: list[LogRange]
    landed: int
    clean: int
    dead_lettered: int
    duplicates: int
    not_wanted: int
