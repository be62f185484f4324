"""Run `PROJECT.prepare` of include/project.py in a process of its own: `python -m stack.prepare`.

It gets the environment of the Airflow processes, and its imports stay out of the stack's own process. Each string that
it returns becomes one line on stdout; its logs go to stderr.
"""

import contextlib
import sys

from include.project import PROJECT

if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        lines = PROJECT.prepare()
    print("\n".join(lines), end="\n" if lines else "")
