"""What passes through XCom between the tasks of the standard lane. Everything is JSON; ends of ranges are exclusive."""

from __future__ import annotations

from typing import TypedDict

from include.streams.lake.offsets import LogRange


class RepairedGaps(TypedDict):
    """Counts of the offsets that `repair_gaps` has settled.

    `appended`: their records were read from Kafka and appended; `without_record`: they hold no record; `lost`:
    retention has removed them.
    """

    appended: int
    without_record: int
    lost: int


class PlannedFile(TypedDict):
    """Offsets [start, end) of one data file that a unit reads."""

    path: str
    partition: int
    start: int
    end: int


class TableColumn(TypedDict):
    """A column of the landing table: its id and its Iceberg type."""

    id: int
    name: str
    type: str


class WorkUnit(TypedDict):
    """What one mapped task validates, with all that the plan knew.

    The `ranges` of all units and the ranges without any record are together the claim's ranges, and the `files` hold
    the records of the unit's ranges. `staging` is the address of the folder of the claim's staging files, `columns` are
    those of the landing table.
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
        good: How many of them keep the contract.
        dead_lettered: How many of them are dead letters.
        not_wanted: How many of them no contract of the topic's union takes.
        without_record: Offsets of the ranges that have no row.
        repeated: Rows that had landed more than once and were dropped.
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
        duplicates: Rows whose event the table, or an earlier row of the run, had already.
        days: The first and the last day of the event times (ISO format); empty without any.
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
