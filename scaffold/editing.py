"""Changes of Python modules that somebody has written: a definition is added, a call gets an argument, or loses one.

Places come from the syntax tree, and text outside of the change stays as it is.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from scaffold.errors import Refused

# A call that lists what a module declares: it gets the arguments of the new module's call.
_LISTS = frozenset({"Registry", "Package", "Project"})


@dataclass(frozen=True)
class Part:
    """A statement at the top of a module, with the comment above it."""

    node: ast.stmt
    text: str
    start: int
    source: str

    @property
    def name(self) -> str | None:
        """The name that it defines."""
        if isinstance(self.node, ast.Assign) and isinstance(self.node.targets[0], ast.Name):
            return self.node.targets[0].id
        if isinstance(self.node, ast.ClassDef | ast.FunctionDef):
            return self.node.name
        return None

    @property
    def is_import(self) -> bool:
        return isinstance(self.node, ast.Import | ast.ImportFrom)

    @property
    def is_docstring(self) -> bool:
        return isinstance(self.node, ast.Expr) and isinstance(self.node.value, ast.Constant)


def merged(existing: str, added: str, path: str) -> str:
    """The module with the definitions of another one of the same kind.

    A call such as `Registry(...)`, and a tuple, gets the elements that it lacks.

    Args:
        existing: The module's source.
        added: The source of the other module.
        path: The module's path, for errors.

    Returns:
        The new source; imports may be unsorted or repeated.

    Raises:
        Refused: The module already defines a name of the other one.
    """
    known = {part.name: part for part in parts_of(existing) if part.name}
    source = existing
    for part in parts_of(added):
        if part.is_docstring or (part.is_import and part.text.strip() in existing):
            continue
        if part.is_import:
            source = _with_import(source, part.text.strip())
        elif part.name in known:
            source = _extended(source, part, path)
        elif isinstance(part.node, ast.If) and part.text.strip() in existing:
            continue
        else:
            source = _with_definition(source, part.text.strip("\n"))
    return source


def parts_of(source: str) -> list[Part]:
    """The statements at the top of a module."""
    tree, lines = ast.parse(source), source.splitlines(keepends=True)
    ends = [0, *(node.end_lineno or 0 for node in tree.body)]
    return [
        Part(node, "".join(lines[before : node.end_lineno]), before, source)
        for node, (before, _) in zip(tree.body, pairwise([*ends, 0]), strict=False)
    ]


def _with_import(source: str, text: str) -> str:
    lines = source.splitlines(keepends=True)
    body = ast.parse(source).body
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    after = imports or [node for node in body[:1] if isinstance(node, ast.Expr)]
    place = (after[-1].end_lineno or 0) if after else 0
    return "".join([*lines[:place], f"{text}\n", *lines[place:]])


def _with_definition(source: str, text: str) -> str:
    """The source with a definition, in front of the statement that lists what is defined."""
    lines = source.splitlines(keepends=True)
    place = next((part.start for part in parts_of(source) if _lists(part.node)), len(lines))
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    space = "\n\n" if isinstance(ast.parse(text).body[0], ast.ClassDef | ast.FunctionDef) else "\n"
    return "".join([*lines[:place], f"{space}{text}\n", *lines[place:]])


def _lists(node: ast.stmt) -> bool:
    """Whether a statement lists definitions above it, or runs the module."""
    if isinstance(node, ast.If):
        return True
    if not isinstance(node, ast.Assign):
        return False
    value = node.value
    is_list = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in _LISTS
    return is_list or isinstance(value, ast.Tuple)


def _extended(source: str, part: Part, path: str) -> str:
    """The source with the elements that its statement of the same name lacks."""
    (old,) = (each.node for each in parts_of(source) if each.name == part.name)
    if isinstance(part.node, ast.Assign) and isinstance(old, ast.Assign):
        if ast.dump(old.value) == ast.dump(part.node.value):
            return source
        if _lists(old) and _lists(part.node):
            for place, text in sorted(_additions(source, old.value, part.node.value, part.source), reverse=True):
                source = source[:place] + text + source[place:]
            return source
    if ast.dump(old) == ast.dump(part.node):
        return source
    raise Refused(f"{path} already has a different {part.name}; give another NAME or PACKAGE")


def _additions(source: str, old: ast.expr, new: ast.expr, of_new: str) -> Iterator[tuple[int, str]]:
    """(place, text) of the parts of `new`, an expression in the source `of_new`, that `old` lacks."""
    known = ast.dump(old)

    def text_of(node: ast.expr) -> str:
        return ast.get_source_segment(of_new, node) or ast.unparse(node)

    if isinstance(old, ast.Tuple) and isinstance(new, ast.Tuple):
        for element in new.elts:
            if ast.dump(element) not in known:
                yield _in_front_of_the_end(source, old, text_of(element), bool(old.elts))
    elif isinstance(old, ast.Dict) and isinstance(new, ast.Dict):
        texts = {ast.unparse(key): value for key, value in zip(old.keys, old.values, strict=True) if key}
        for key, value in zip(new.keys, new.values, strict=True):
            if key and ast.unparse(key) in texts:
                yield from _additions(source, texts[ast.unparse(key)], value, of_new)
            elif key:
                text = f"{text_of(key)}: {text_of(value)}"
                yield _in_front_of_the_end(source, old, text, bool(old.keys))
    elif isinstance(old, ast.Call) and isinstance(new, ast.Call):
        for argument in new.args:
            if ast.dump(argument) not in known:
                yield _in_front_of_the_end(source, old, text_of(argument), bool(old.args or old.keywords))
        arguments = {keyword.arg: keyword.value for keyword in old.keywords}
        for keyword in new.keywords:
            if keyword.arg in arguments:
                yield from _additions(source, arguments[keyword.arg], keyword.value, of_new)
            else:
                text = f"{keyword.arg}={text_of(keyword.value)}"
                yield _in_front_of_the_end(source, old, text, bool(old.args or old.keywords))
    elif isinstance(old, ast.Name) and isinstance(new, ast.Tuple):
        # A tuple that is defined elsewhere: `consumers=CONSUMERS`.
        start, end = _span(source, old)
        yield start, "(*"
        yield end, f", {', '.join(map(text_of, new.elts))})"


def _in_front_of_the_end(source: str, node: ast.expr, text: str, has_elements: bool) -> tuple[int, str]:
    _, end = _span(source, node)
    has_comma = source[: end - 1].rstrip().endswith(",")
    # A tuple of one element needs the comma.
    after = "," if has_comma or (isinstance(node, ast.Tuple) and not has_elements) else ""
    return end - 1, f"{'' if has_comma or not has_elements else ', '}{text}{after}"


def _span(source: str, node: ast.expr) -> tuple[int, int]:
    """The offsets, in characters, at which a node begins and ends."""
    lines = source.splitlines(keepends=True)

    def offset(line: int, column: int) -> int:
        # Columns of the syntax tree are bytes.
        return sum(map(len, lines[: line - 1])) + len(lines[line - 1].encode()[:column].decode())

    return offset(node.lineno, node.col_offset), offset(node.end_lineno or 0, node.end_col_offset or 0)


def with_argument(source: str, name: str, argument: str) -> str:
    """The source with one more argument in the call that is assigned to a name."""
    (new,) = parts_of(f"{name} = Project({argument})\n")
    return _extended(source, new, "include/project.py")


def without_package(source: str, package: str) -> str:
    """`include/project.py` without the imports of a package, and without what they name.

    Args:
        source: The module's source.
        package: The package's folder in `include/`.
    """
    lines = source.splitlines(keepends=True)
    gone: set[str] = set()
    for node in reversed(ast.parse(source).body):
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        if isinstance(node, ast.ImportFrom) and f"{module}.".startswith(f"include.{package}."):
            gone |= {alias.asname or alias.name for alias in node.names}
            del lines[node.lineno - 1 : node.end_lineno]
    source = "".join(lines)
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and any(isinstance(arg, ast.Name) and arg.id in gone for arg in call.args):
            kept = [arg for arg in call.args if not (isinstance(arg, ast.Name) and arg.id in gone)]
            start, end = _span(source, call)
            new = ast.unparse(ast.Call(call.func, kept, call.keywords))
            return source[:start] + new + source[end:]
    return source
