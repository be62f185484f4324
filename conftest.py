"""Let `astro dev pytest` and `astro deploy --pytest` run the tests that the image can run: those of the Dags.

The others need the local stack, or tools that are installed for development only.
"""

from importlib.util import find_spec

IN_THE_IMAGE = find_spec("hypothesis") is None
collect_ignore = ["tests/unit", "tests/integration", "tests/e2e", "tests/scaffold"] if IN_THE_IMAGE else []
