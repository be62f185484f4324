"""What this project consists of: the one module that names its packages.

The Dags in `dags/operations/`, the local stack, `tests/dags` and the benchmarks read only this module. `make topic`
adds topics of your own, `make remove-example` removes the example. Packages that you write by hand are named here too.
"""

from include.streams import Project
from include.water.package import WATER

PROJECT = Project(WATER)
