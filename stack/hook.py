"""Run a hook of [tool.stack] in a process of its own: `python -m stack.hook package.module:function`.

The hook belongs to the project, not to the stack. It gets the environment of the Airflow processes, and its imports
stay out of the stack's own process. Each string that it returns becomes one line on stdout; its logs go to stderr.
"""

import contextlib
import importlib
import sys


def main(target: str) -> None:
    module_name, function = target.split(":")
    with contextlib.redirect_stdout(sys.stderr):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if not (error.name and f"{module_name}.".startswith(f"{error.name}.")):
                raise
            lines = [f"{module_name} does not exist: nothing to prepare"]
        else:
            lines = list(getattr(module, function)())
    print("\n".join(lines), end="\n" if lines else "")


if __name__ == "__main__":
    main(sys.argv[1])
