"""The names of include/ that Dag files import: Dag files of the last release run with this release's include/.

Astro versions Dag files, but takes include/ from the deployed image: a run that was started before a deploy continues
with its own Dag file and the new include/. `python -m tests.dags.names` adds missing names to released_names.txt: in
this folder for the library, and in the folder of each package for the package.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.dags.policy import DAGS, PROJECT

HERE = Path(__file__).parent
LIST = "released_names.txt"
HEADER = """\
# What Dag files import from include/, one `module:name` a line. The Dag files of the release before run with the
# include/ of the next one, so a name is retired in two releases: the first has no Dag file that imports it, the second
# has neither the name nor its line here. `python -m tests.dags.names` adds lines, and removes none.
"""


def imported(files: Iterable[Path]) -> set[str]:
    """`module:name` of every name that the Dag files import from include/, also in function bodies and dotted paths."""
    return {f"{module}:{name}" for path in files for module, name in _imports(ast.parse(path.read_text()))}


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "include":
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "include")
        elif isinstance(node, ast.Constant) and re.fullmatch(r"include(\.\w+)+[.:]\w+", str(node.value)):
            module, _, name = node.value.replace(":", ".").rpartition(".")
            yield module, name


def released() -> set[str]:
    """The lines of the committed lists: the library's list, and the list in the folder of each package."""
    lines = [line for path in HERE.rglob(LIST) for line in path.read_text().splitlines()]
    return {line for line in lines if line and not line.startswith("#")}


def write(names: Iterable[str], folder: Path = HERE) -> None:
    """Write the lists: names of `include/<package>/` to the package's list, all others to the library's."""
    by_file: dict[Path, list[str]] = {}
    for name in sorted(names):
        package = re.split(r"[.:]", name)[1]
        own = package not in ("streams", "project")
        by_file.setdefault(folder / package / LIST if own else folder / LIST, []).append(name)
    for path, lines in by_file.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(HEADER + "".join(f"{line}\n" for line in lines))


def missing(names: Iterable[str], root: Path = PROJECT) -> list[str]:
    """The names that include/ does not have."""
    return sorted(name for name in names if not _exists(*name.split(":"), root))


def _exists(module: str, name: str, root: Path) -> bool:
    path = root.joinpath(*module.split("."))
    if not name or (path / name).is_dir() or (path / f"{name}.py").exists():
        return path.is_dir() or path.with_suffix(".py").exists()
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return source.exists() and name in set(_defined(ast.parse(source.read_text()).body))


def _defined(body: Iterable[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))
        elif isinstance(node, (ast.If, ast.Try)):
            yield from _defined([*node.body, *node.orelse])


if __name__ == "__main__":
    write(released() | imported(DAGS.rglob("*.py")))
