"""The layouts of the register's files, and their folders."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum

from include.streams.validators.rules import (
    Measure,
    Rule,
    SetSuite,
    at_most_long,
    between,
    matches,
    not_null,
    one_of,
    unique,
)
from include.water.sites import DISTRICTS

# Processed files are moved out of INCOMING: the sensor fires on any object there.
INCOMING, ARCHIVE, REJECTED = "register/incoming/", "register/archive/", "register/rejected/"
# Ten times the size of a register of all customers. A file is read at once, and needs several times its size in memory.
MAX_BYTES = 20 * 1024**2
MAX_ROWS = 200_000
MAX_FIELD_CHARACTERS = 1_000
# An added column: the row's line in the file.
LINE = "line"
_NAME = re.compile(r"(sites|customers)[^/]*\.csv", re.IGNORECASE)
_NUMBER = r"^-?[0-9]{1,3}(?:\.[0-9]{1,9})?$"
_SITE_KINDS = ("dam", "treatment", "pumping", "tank", "tunnel", "main", "reservoir", "valve")


class Kind(StrEnum):
    sites = "sites"
    customers = "customers"


@dataclass(frozen=True)
class Layout:
    """The layout of one kind of file.

    Attributes:
        kind: The kind.
        key: The column that identifies a row.
        columns: The columns, as in the file's first line.
        numbers: Columns that are also parsed as numbers, under their name with `_number`.
        rules: The rules for the rows.
    """

    kind: Kind
    key: str
    columns: tuple[str, ...]
    numbers: tuple[str, ...]
    rules: tuple[Rule, ...]

    def suite(self) -> SetSuite:
        parsed = tuple(f"{name}_number" for name in self.numbers)
        return SetSuite(
            name=f"register_{self.kind}",
            description=f"A file with {self.kind} of the network, as it was uploaded below {INCOMING}.",
            columns=(*self.columns, *parsed, LINE),
            rules=(*(not_null(column) for column in self.columns), *self.rules),
            queries=("select count(*) as rows from run",),
            measures=(Measure("rows", "rows of the file", minimum=1, maximum=MAX_ROWS),),
            # The report is next to the file, so whoever can read it can read the file too.
            examples=5,
        )


_DISTRICT = one_of("district_id", DISTRICTS, expected="a district of the network")
LAYOUTS = {
    Kind.sites: Layout(
        Kind.sites,
        key="site_id",
        columns=("site_id", "name", "kind", "district_id", "latitude", "longitude"),
        numbers=("latitude", "longitude"),
        rules=(
            unique("site_id"),
            matches("site_id", r"^[a-z][a-z0-9-]*$", expected="lower-case letters, digits and dashes"),
            at_most_long("site_id", 40),
            matches("name", r"^[^\u0000-\u001f\u007f]*$", expected="text on one line"),
            at_most_long("name", 100),
            one_of("kind", _SITE_KINDS),
            _DISTRICT,
            matches("latitude", _NUMBER, expected="a number, with a point"),
            between("latitude_number", -90, 90),
            matches("longitude", _NUMBER, expected="a number, with a point"),
            between("longitude_number", -180, 180),
        ),
    ),
    Kind.customers: Layout(
        Kind.customers,
        key="customer_id",
        columns=("customer_id", "meter_id", "district_id", "persons"),
        numbers=("persons",),
        rules=(
            unique("customer_id"),
            matches("customer_id", r"^C-[0-9]{6,10}$", expected="C- and 6 to 10 digits"),
            # Two households with the same meter would see each other's use.
            unique("meter_id"),
            matches("meter_id", r"^M-[0-9]{6}$", expected="M- and 6 digits"),
            _DISTRICT,
            matches("persons", r"^[0-9]{1,2}$", expected="a whole number"),
            between("persons_number", 1, 20),
        ),
    ),
}


def layout_of(object_name: str) -> Layout | None:
    """The layout by the file's name: `sites*.csv` or `customers*.csv`; None for any other name."""
    match = _NAME.fullmatch(object_name.rsplit("/", 1)[-1])
    return LAYOUTS[Kind(match[1].lower())] if match else None


def identity(object_name: str, generation: int) -> str:
    """A key of one generation of a file. It is safe in paths, whatever name the sender chose for the file."""
    return f"{int(generation)}-{hashlib.sha256(object_name.encode()).hexdigest()[:12]}"


def safe_name(object_name: str) -> str:
    """The part of the name that is safe in a path, so that people recognize the file."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", object_name.rsplit("/", 1)[-1])
    return re.sub(r"\.{2,}", ".", plain).lstrip(".")[-60:] or "file"
