"""Runs a hook of [tool.stack], in a process of its own: `python -m stack.hook package.module:function`.

The hook belongs to the project and not to the stack: it gets the environment that the Airflow processes get, and
whatever it imports stays out of the stack's own process. Each string that it returns is printed as one line.
"""

import importlib
import sys


def main(target: str) -> None:
    module_name, function = target.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            print(f"{module_name} does not exist: nothing to prepare")
            return
        raise
    for line in getattr(module, function)():
        print(line)


if __name__ == "__main__":
    main(sys.argv[1])
