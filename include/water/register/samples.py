"""Sample files of the register: a good and a bad file of each kind, by a seed."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterable, Mapping

from include.water.register.layout import LAYOUTS, Kind
from include.water.sites import DISTRICTS, SITES


def good_file(kind: Kind, *, seed: int = 0, rows: int = 50) -> bytes:
    """A file that is applied: the same bytes for the same seed, with a byte order mark like a file from Excel.

    Args:
        kind: The kind of file.
        seed: Of the random numbers.
        rows: How many rows.
    """
    return b"\xef\xbb\xbf" + csv_file(kind, _rows(kind, random.Random(seed), rows))


def bad_file(kind: Kind, *, seed: int = 0, rows: int = 50) -> bytes:
    """A file that can be read and is rejected: a duplicate id, an unknown district, an invalid number, markup.

    Args:
        kind: The kind of file.
        seed: Of the random numbers.
        rows: How many rows, before a duplicate is added.
    """
    bad = list(_rows(kind, random.Random(seed), rows))
    bad.append(dict(bad[0]))
    bad[1]["district_id"] = "<img src=x onerror=alert(1)>"
    bad[2][LAYOUTS[kind].numbers[0]] = "=1+1"
    bad[3][LAYOUTS[kind].key] = "a quoted\nline break"
    return csv_file(kind, bad)


def _rows(kind: Kind, random_numbers: random.Random, rows: int) -> Iterable[dict[str, str]]:
    districts = list(DISTRICTS.values())
    if kind is Kind.sites:
        known = [vars(site) for site in SITES.values()]
        for number in range(rows):
            district = random_numbers.choice(districts)
            new = {
                "site_id": f"valve-{number:05d}",
                "name": f"Valve {number}, {district.name}",
                "kind": "valve",
                "district_id": district.district_id,
                "latitude": round(district.latitude + random_numbers.uniform(-0.02, 0.02), 5),
                "longitude": round(district.longitude + random_numbers.uniform(-0.02, 0.02), 5),
            }
            site = known[number] if number < len(known) else new
            yield {name: str(site[name]) for name in LAYOUTS[kind].columns}
    else:
        for number in range(rows):
            yield {
                "customer_id": f"C-{100_000 + number:06d}",
                "meter_id": f"M-{100_000 + number:06d}",
                "district_id": random_numbers.choice(districts).district_id,
                "persons": str(random_numbers.choices((1, 2, 3, 4, 5), (30, 34, 15, 14, 7))[0]),
            }


def csv_file(kind: Kind, rows: Iterable[Mapping[str, object]]) -> bytes:
    """Write the rows as a CSV file with the columns of this kind."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, LAYOUTS[kind].columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
