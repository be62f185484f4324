"""Run `PROJECT.prepare` of include/project.py in a process of its own: `python -m stack.prepare`.

The process gets the environment of the Airflow processes, and the stack's own process does not import the project. Each
string that `prepare` returns becomes a line on stdout; logs go to stderr.
"""

import contextlib
import sys

from include.project import PROJECT

if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        lines = PROJECT.prepare()
    print("\n".join(lines), end="\n" if lines else "")
