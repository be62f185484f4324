"""Names for tables of pandas in annotations, without importing it: what it says of its own types no checker follows."""

from typing import Any

DataFrame = Any
Series = Any
