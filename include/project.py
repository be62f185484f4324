"""What this project consists of: the one module that names its packages.

The Dags in `dags/operations/`, the local stack, `tests/dags` and the benchmarks read this module only. To add topics of
your own, write a package beside `include/water/` and name it here.
"""

from include.streams import Project
from include.water.package import WATER

PROJECT = Project(WATER)


def prepare() -> list[str]:
    """Bring the databases, Kafka and Kafka Connect to the state that this version of the project needs.

    The Dag `prepare_services` and the local stack call it. It is safe to run again.

    Returns:
        What changed, in words.
    """
    from include.streams.services import prepare

    return prepare(PROJECT.topics)
