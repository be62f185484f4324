"""The packages of this project.

The Dags in `dags/operations/`, the local stack, `tests/dags` and the benchmarks read only this module. `make topic`
adds topics of your own, `make remove-example` removes the example. Add packages that you write by hand here too.
"""

from include.streams import Project
from include.water.package import WATER

PROJECT = Project(WATER)
