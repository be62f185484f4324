"""What this project consists of: the one module that names its packages.

The Dags in `dags/operations/`, the local stack, `tests/dags` and the benchmarks read this module only. To add topics of
your own, write a package beside `include/water/` and name it here.
"""

from include.streams import Project
from include.water.package import WATER

PROJECT = Project(WATER)
