"""Finds code that uses private names of other packages."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[3]
OWN = ("include", "dags", "plugins", "stack")
COMPAT = ROOT / "include" / "streams" / "compat"

# Names that begin with an underscore and are public: {pattern: why}.
PUBLIC = {
    r"KafkaError\._[A-Z_]+": "the client's own error codes, which its documentation lists under these names",
    r".*\._asdict": "a documented method of named tuples; the underscore keeps it apart from fields",
    r".*\._mapping": "SQLAlchemy's documented view of a row by name; the underscore keeps it apart from columns",
}


def own_files() -> list[Path]:
    """The project's Python files that may not use private names of other packages."""
    files = (path for folder in OWN for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in files if COMPAT not in path.parents]


def private_uses(tree: ast.Module, defined: Mapping[str, set[str]]) -> Iterator[tuple[int, str]]:
    """Find the private names of other packages that a file uses, as (line, name).

    An object's type is not known. So a private attribute counts as another package's, unless one of these holds:

    - The object is `self`, `cls` or an instance of a class of the file, and one of the project's classes defines the
      name.
    - The object is an imported module or class of the project.

    Args:
        tree: The file's syntax tree.
        defined: {class of the project: the private names that it defines}, from `definitions`.
    """
    imported = dict(_imports(tree))
    in_file = set().union(*definitions(tree).values())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not _is_ours(node.module or "", node.level):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, name) for name in names if _is_private(name))
        elif isinstance(node, ast.Import):
            names = [name for alias in node.names if not _is_ours(alias.name) for name in alias.name.split(".")]
            yield from ((node.lineno, name) for name in names if _is_private(name))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "delattr", "hasattr"):
            name = node.args[1] if len(node.args) > 1 else None
            if isinstance(name, ast.Constant) and _is_private(str(name.value)) and name.value not in in_file:
                yield node.lineno, str(name.value)
        elif isinstance(node, ast.Attribute) and _is_private(node.attr):
            owner = ast.unparse(node.value)
            if owner in ("self", "cls"):
                continue
            if node.attr not in in_file and not _is_ours(imported.get(owner.split(".")[0], "")):
                yield node.lineno, f"{owner}.{node.attr}"
        elif isinstance(node, ast.ClassDef):
            yield from _of_foreign_bases(node, imported, defined)


def definitions(tree: ast.Module) -> dict[str, set[str]]:
    """{class of a file: the private names of its methods and attributes}; the key "" has the module's own names."""
    defined: dict[str, set[str]] = {"": set()}
    for statement in tree.body:
        defined[""] |= _names(statement)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            of_class = defined.setdefault(node.name, set())
            for statement in node.body:
                of_class |= _names(statement)
            of_class |= {
                part.attr
                for part in ast.walk(node)
                if isinstance(part, ast.Attribute)
                and isinstance(part.ctx, ast.Store)
                and ast.unparse(part.value) in ("self", "cls")
            }
    return {name: {private for private in names if _is_private(private)} for name, names in defined.items()}


def _names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}


def _of_foreign_bases(
    node: ast.ClassDef, imported: Mapping[str, str], defined: Mapping[str, set[str]]
) -> Iterator[tuple[int, str]]:
    """The private names of base classes of other packages that a class overrides or uses, as (line, name).

    A private name belongs to the base if the base has it, or if no class of the project defines it. The base is
    imported to check that.
    """
    bases = [_imported(base, imported) for base in node.bases]
    foreign = [base for base in bases if base is not None]
    if not foreign:
        return
    of_ours = set().union(*defined.values())
    for statement in node.body:
        for name in filter(_is_private, _names(statement)):
            if any(hasattr(base, name) for base in foreign):
                yield statement.lineno, f"{node.name}.{name}"
    for part in ast.walk(node):
        if not isinstance(part, ast.Attribute) or not _is_private(part.attr):
            continue
        is_foreign = part.attr not in of_ours or any(hasattr(base, part.attr) for base in foreign)
        if is_foreign and ast.unparse(part.value) in ("self", "cls"):
            yield part.lineno, f"{ast.unparse(part)} of {node.name}"


def _imported(base: ast.expr, imported: Mapping[str, str]) -> object | None:
    """The base class if it is imported from another package; None if it is the project's, the file's, or built in."""
    while isinstance(base, ast.Subscript):
        base = base.value
    first, *rest = ast.unparse(base).split(".")
    address = imported.get(first)
    if address is None or _is_ours(address):
        return None
    module, _, name = address.partition(":")
    imported_object: object = importlib.import_module(module)
    for part in [name, *rest] if name else rest:
        imported_object = getattr(imported_object, part)
    return imported_object


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name in this file, "module" or "module:name") of all imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                # `import a.b` binds a.
                first = alias.name.partition(".")[0]
                yield alias.asname or first, alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{OWN[0] if node.level else node.module}:{alias.name}"


def _is_ours(module: str, level: int = 0) -> bool:
    return level > 0 or module.partition(":")[0].split(".")[0] in OWN


def _is_private(name: str) -> bool:
    """Whether the name has one leading underscore. Names like `_missing_` are public hooks of enumerations."""
    return name.startswith("_") and not name.startswith("__") and not name.endswith("_")
