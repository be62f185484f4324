"""The types of the lake's columns: one map from Iceberg's names to DuckDB's names and Arrow's types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

# {Iceberg's name: (DuckDB's name, the function of pyarrow, its arguments)}. PyIceberg's fields take Iceberg's name.
_TYPES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "boolean": ("BOOLEAN", "bool_", ()),
    "int": ("INTEGER", "int32", ()),
    "long": ("BIGINT", "int64", ()),
    "float": ("FLOAT", "float32", ()),
    "double": ("DOUBLE", "float64", ()),
    "date": ("DATE", "date32", ()),
    "timestamp": ("TIMESTAMP", "timestamp", ("us",)),
    "timestamptz": ("TIMESTAMPTZ", "timestamp", ("us", "UTC")),
    "string": ("VARCHAR", "string", ()),
    "binary": ("BLOB", "binary", ()),
}


def sql_type(kind: Any) -> str:
    """DuckDB's name of an Iceberg type. Raises ValueError for an unsupported type."""
    return _known(kind)[0]


def arrow_type(kind: Any) -> pyarrow.DataType:
    """The Arrow type for an Iceberg type. Raises ValueError for an unsupported type."""
    import pyarrow

    _, name, arguments = _known(kind)
    return getattr(pyarrow, name)(*arguments)


def _known(kind: Any) -> tuple[str, str, tuple[str, ...]]:
    try:
        return _TYPES[str(kind)]
    except KeyError:
        raise ValueError(f"Iceberg type {kind}: not one of {', '.join(_TYPES)}") from None
