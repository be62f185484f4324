"""Units of work: which offsets of which files each mapped task of a run reads. Computed without I/O.

Each plan looks up the files of the offset ranges again (`snapshot.py`). So expired snapshots, rewritten files and
overlapping files do not change which records a run reads.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from include.streams.kafka.offsets import OffsetRange
from include.streams.lake.offsets import LogRange
from include.streams.landing import intervals
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.intervals import Ranges
from include.streams.landing.stored import DataFileRange, FileOffsets
from include.streams.landing.tables import LandedTopic
from include.streams.landing.xcom import PlannedFile, TableColumn, WorkUnit


class NotLanded(Exception):
    """Offsets that a run has claimed are not in the landing table. Without this error, their rows would be missing."""


@dataclass(frozen=True)
class FileSlice:
    """Offsets [start, end) that are read from one file. Slices do not overlap, and a slice needs no other file."""

    path: str
    partition: int
    start: int
    end: int
    version: str = ""

    def __len__(self) -> int:
        return self.end - self.start


def slices(files: Iterable[FileOffsets], wanted: OffsetRange, settled: Ranges) -> list[FileSlice]:
    """Choose the pieces of files that hold the range's records.

    Together the pieces are the range, in order and without overlap.

    Args:
        files: Files of the partition that overlap the range, sorted by first offset, and possibly others.
        wanted: The range.
        settled: The offsets of the partition that are recorded as holding no record or as lost.

    Returns:
        The pieces; empty when no offset of the range holds a record.

    Raises:
        NotLanded: An offset is in no file, and is not recorded as holding no record or as lost.
    """
    taken, missing = _assigned(files, wanted)
    if missing and (gone := intervals.subtract(missing, settled)):
        raise NotLanded(f"{wanted}: not in the landing table: {intervals.text(gone)}")
    pieces: list[FileSlice] = []
    # Offsets without a record are added to the next piece, or to the last one.
    start = wanted.start
    for _, end, file in taken:
        if pieces and pieces[-1].path == file.path:
            pieces[-1] = replace(pieces[-1], end=end)
        else:
            pieces.append(FileSlice(file.path, wanted.partition, start, end, file.version))
        start = end
    if pieces:
        pieces[-1] = replace(pieces[-1], end=wanted.end)
    return pieces


def _assigned(files: Iterable[FileOffsets], wanted: OffsetRange) -> tuple[list[tuple[int, int, DataFileRange]], Ranges]:
    """(start, end, file): which file each offset is read from, in order; and the offsets that no file holds."""
    taken: list[tuple[int, int, DataFileRange]] = []
    missing: Ranges = []
    left: Ranges = [(wanted.start, wanted.end)]
    # The files are sorted by first offset: if a range ends before a file starts, it is not in any later file either.
    for file, offsets in files:
        if file.end <= wanted.start or file.start >= wanted.end:
            continue
        while left and left[0][1] <= file.start:
            missing.append(left.pop(0))
        read_here = intervals.intersect(offsets, left)
        taken += [(start, end, file) for start, end in read_here]
        if read_here:
            left = intervals.subtract(left, read_here)
    return sorted(taken, key=lambda each: each[:2]), intervals.union([*missing, *left])


def batches(consumer: LandingConsumer, pieces: Iterable[FileSlice]) -> list[list[FileSlice]]:
    """Distribute slices over the units of a run, with about the same number of offsets each.

    Args:
        consumer: The landing consumer: how to map, and the limits for units.
        pieces: The slices, sorted by partition and offset.

    Returns:
        The slices of each unit.
    """
    groups: list[list[FileSlice]] = []
    for piece in pieces:
        if consumer.map_by == "partition" and groups and groups[-1][0].partition == piece.partition:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    if not groups:
        return []
    sizes = [sum(map(len, group)) for group in groups]
    count = min(len(groups), consumer.max_units)
    if consumer.map_by == "file":
        count = min(count, -(-sum(sizes) // consumer.min_messages_per_unit))
    units: list[list[FileSlice]] = [[]]
    done = 0
    for number, (group, size) in enumerate(zip(groups, sizes, strict=True)):
        is_full = done >= sum(sizes) * len(units) / count
        are_few = len(groups) - number <= count - len(units)
        if units[-1] and len(units) < count and (is_full or are_few):
            units.append([])
        units[-1] += group
        done += size
    return units


def work_unit(
    claim_id: int,
    number: int,
    pieces: Sequence[FileSlice],
    *,
    logs: Mapping[int, str],
    staging: str,
    columns: list[TableColumn],
) -> WorkUnit:
    """Build a unit of work for XCom.

    Args:
        claim_id: The claim.
        number: The unit's number in its run.
        pieces: What the unit reads, sorted by partition and offset.
        logs: {partition: the identity of the log that was claimed}.
        staging: The address of the folder of the claim's staging files.
        columns: The columns of the landing table.
    """
    ranges: list[LogRange] = []
    for piece in pieces:
        if ranges and (ranges[-1]["partition"], ranges[-1]["end"]) == (piece.partition, piece.start):
            ranges[-1]["end"] = piece.end
        else:
            ranges.append(
                {
                    "partition": piece.partition,
                    "start": piece.start,
                    "end": piece.end,
                    "log": logs[piece.partition],
                }
            )
    return {
        "claim_id": claim_id,
        "unit": number,
        "ranges": ranges,
        "files": [_planned(piece) for piece in pieces],
        "staging": staging,
        "columns": columns,
    }


def _planned(piece: FileSlice) -> PlannedFile:
    file: PlannedFile = {"path": piece.path, "partition": piece.partition, "start": piece.start, "end": piece.end}
    if piece.version:
        file["version"] = piece.version
    return file


def offset_ranges(topic: LandedTopic, unit: WorkUnit) -> list[OffsetRange]:
    """The ranges of a unit, with the identity of the log that was claimed.

    Args:
        topic: The landed topic.
        unit: The unit of work.
    """
    return [
        OffsetRange(topic.name, part.get("log") or "", part["partition"], part["start"], part["end"])
        for part in unit["ranges"]
    ]
