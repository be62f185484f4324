"""Names for pandas types in annotations, without importing pandas: checkers cannot follow pandas' own annotations."""

from typing import Any

DataFrame = Any
Series = Any
