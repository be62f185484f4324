"""Units of work: which offsets of which files each mapped task of a run reads.

Every planning looks up the files for the offset ranges again. So expired snapshots, rewritten files and overlapping
files do not change what a run reads.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from include.streams.kafka.offsets import OffsetRange
from include.streams.landing import intervals
from include.streams.landing.consumers import LandingConsumer
from include.streams.landing.intervals import Ranges
from include.streams.landing.landed import Landed

# As an XCom: {"claim_id", "unit", "ranges": [{partition, start, end}], "files": [{path, partition, start, end}]}; ends
# are exclusive. The units' ranges together are the claim's ranges; a file's offsets are those that this unit reads from
# it.
Unit = dict[str, Any]


class NotLanded(Exception):
    """Offsets that a run has claimed are not in the landing table: rows would be left out silently."""


@dataclass(frozen=True)
class Slice:
    """Offsets [start, end) that are read from one file. No other slice overlaps them, and they need no other file."""

    path: str
    partition: int
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


def slices(landed: Landed, wanted: OffsetRange, settled: Callable[[OffsetRange], Ranges]) -> list[Slice]:
    """Choose the pieces of files that hold the range's records.

    Together the pieces are the range, in order and without overlap.

    Args:
        landed: The files of the landing table. They are read in no transaction of the caller's: that can take long.
        wanted: The range.
        settled: Returns the offsets of the range that are recorded as holding no record or as lost. It is called only
            if an offset is in no file.

    Returns:
        The pieces; empty when no offset of the range holds a record.

    Raises:
        NotLanded: An offset is in no file, and is not recorded as holding no record or as lost.
    """
    taken, missing = _assigned(landed, wanted)
    if missing and (gone := intervals.subtract(missing, settled(wanted))):
        raise NotLanded(f"{wanted}: not in the landing table: {intervals.text(gone)}")
    pieces: list[Slice] = []
    # Offsets without a record are added to the next piece, or to the last one.
    start = wanted.start
    for _, end, path in taken:
        if pieces and pieces[-1].path == path:
            pieces[-1] = Slice(path, wanted.partition, pieces[-1].start, end)
        else:
            pieces.append(Slice(path, wanted.partition, start, end))
        start = end
    if pieces:
        pieces[-1] = Slice(pieces[-1].path, wanted.partition, pieces[-1].start, wanted.end)
    return pieces


def _assigned(landed: Landed, wanted: OffsetRange) -> tuple[list[tuple[int, int, str]], Ranges]:
    """(start, end, path): which file each offset is read from, in order; and the offsets that no file holds."""
    files = landed.files(wanted.partition, wanted.start, wanted.end)
    landed.read_ahead(files)
    taken: list[tuple[int, int, str]] = []
    missing: Ranges = []
    left: Ranges = [(wanted.start, wanted.end)]
    # The files are sorted by first offset: a range that ends before a file starts is in none of the files that follow.
    for file in files:
        while left and left[0][1] <= file.start:
            missing.append(left.pop(0))
        mine = intervals.intersect(landed.offsets(file), left)
        taken += [(start, end, file.path) for start, end in mine]
        if mine:
            left = intervals.subtract(left, mine)
    return sorted(taken), intervals.union([*missing, *left])


def bundles(consumer: LandingConsumer, pieces: Iterable[Slice]) -> list[list[Slice]]:
    """Distribute slices over the units of a run, with about the same number of offsets each.

    Args:
        consumer: The landing consumer: how to map, and the limits for units.
        pieces: The slices, sorted by partition and offset.

    Returns:
        The slices of each unit.
    """
    groups: list[list[Slice]] = []
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
    units: list[list[Slice]] = [[]]
    done = 0
    for number, (group, size) in enumerate(zip(groups, sizes, strict=True)):
        is_full = done >= sum(sizes) * len(units) / count
        are_few = len(groups) - number <= count - len(units)
        if units[-1] and len(units) < count and (is_full or are_few):
            units.append([])
        units[-1] += group
        done += size
    return units


def unit(claim_id: int, number: int, pieces: Iterable[Slice]) -> Unit:
    """A unit of work as an XCom."""
    ranges: list[dict[str, int]] = []
    files = [asdict(piece) for piece in pieces]
    for file in files:
        if ranges and (ranges[-1]["partition"], ranges[-1]["end"]) == (file["partition"], file["start"]):
            ranges[-1]["end"] = file["end"]
        else:
            ranges.append({name: file[name] for name in ("partition", "start", "end")})
    return {"claim_id": claim_id, "unit": number, "ranges": ranges, "files": files}
