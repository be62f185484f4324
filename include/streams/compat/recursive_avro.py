"""Reads Avro values of recursive schemas without a crash of the process."""

from io import BytesIO
from typing import Any


def read(payload: BytesIO, writer: Any, reader: Any) -> Any:
    """Read one value with fastavro's reader in Python.

    Its compiled reader does not limit the depth of a recursive schema: a value of a few kilobytes overflows the stack
    and kills the process.

    Args:
        payload: The bytes, read up to the value's end.
        writer: The parsed schema of the value.
        reader: The parsed schema to read it with; None for the writer's.

    Raises:
        RecursionError: The value is nested too deeply.
        ImportError: This version of fastavro has no reader in Python.
        Exception: The bytes do not fit the schema.
    """
    from fastavro import _read_py

    return _read_py.schemaless_reader(payload, writer, reader)
