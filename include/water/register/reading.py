"""Read a file of the register: untrusted bytes become rows of text, or an error with the reason."""

from __future__ import annotations

import codecs
import csv
import io
from typing import TYPE_CHECKING, Any

from include.water.register.layout import LINE, MAX_FIELD_CHARACTERS, MAX_ROWS, Layout

if TYPE_CHECKING:
    import pyarrow


class Unreadable(Exception):
    """The file is not a valid table. The text quotes only the names of known columns, nothing else of the file."""


def read_rows(data: bytes, layout: Layout) -> pyarrow.Table:
    """Read the rows of a file.

    Args:
        data: The file.
        layout: Its layout.

    Returns:
        The columns as text, with empty fields as null; the column LINE with the line at which each row begins; and the
        parsed numbers.

    Raises:
        Unreadable: The file is not a valid table.
    """
    import pyarrow

    rows = _parse(_decode(data), layout)
    columns: dict[str, Any] = {
        name: pyarrow.array([row[position] or None for _, row in rows], pyarrow.string())
        for position, name in enumerate(layout.columns)
    }
    for name in layout.numbers:
        values = [_number(value) for value in columns[name].to_pylist()]
        columns[f"{name}_number"] = pyarrow.array(values, pyarrow.float64())
    columns[LINE] = pyarrow.array([line for line, _ in rows], pyarrow.int64())
    return pyarrow.table(columns)


def _decode(data: bytes) -> str:
    if not data:
        raise Unreadable("the file is empty")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Unreadable("the file is UTF-16; save it as UTF-8 (in Excel: 'CSV UTF-8')")
    try:
        # Excel writes a byte order mark before UTF-8; it is not part of the first column's name.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"line {line} is not UTF-8; save the file as UTF-8 (in Excel: 'CSV UTF-8')") from None
    if "\0" in text:
        raise Unreadable(
            f"line {text.count(chr(10), 0, text.index(chr(0))) + 1} holds a NUL byte: this is no text file"
        )
    return text


def _parse(text: str, layout: Layout) -> list[tuple[int, list[str]]]:
    """Parse the CSV text.

    Returns:
        (line, fields in the layout's order) of each row.
    """
    # strict: text after a closing quote is an error, not a part of the field.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    before = csv.field_size_limit(MAX_FIELD_CHARACTERS)
    rows: list[tuple[int, list[str]]] = []
    try:
        positions = _header(next(reader, []), layout)
        start = reader.line_num + 1
        for fields in reader:
            if fields:
                if len(fields) != len(layout.columns):
                    raise Unreadable(f"line {start} has {len(fields)} fields, and the first {len(layout.columns)}")
                rows.append((start, [fields[position].strip() for position in positions]))
                if len(rows) > MAX_ROWS:
                    raise Unreadable(f"more than {MAX_ROWS:,} rows")
            # A quoted field may span lines: a row begins where the previous row ended.
            start = reader.line_num + 1
    except csv.Error as error:
        # The csv module's own error texts contain no content.
        raise Unreadable(f"line {reader.line_num} is no CSV: {error}") from None
    finally:
        csv.field_size_limit(before)
    return rows


def _header(header: list[str], layout: Layout) -> list[int]:
    """The positions of the layout's columns in the file's first line."""
    names = [name.strip() for name in header]
    missing = [name for name in layout.columns if name not in names]
    if missing and len(header) == 1 and ";" in header[0]:
        raise Unreadable("fields are separated by semicolons; separate them by commas")
    if missing:
        raise Unreadable(f"the first line lacks the columns {', '.join(missing)}")
    if len(names) != len(layout.columns):
        extra = len(names) - len(layout.columns)
        raise Unreadable(f"the first line has {extra} columns too many; it needs {', '.join(layout.columns)}")
    return [names.index(name) for name in layout.columns]


def _number(text: str | None) -> float | None:
    """The number; None for any other text, which a rule of the layout reports."""
    try:
        return float(text) if text and text.isascii() and len(text) < 30 else None
    except ValueError:
        return None
