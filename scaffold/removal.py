"""`make remove-example`: the example is removed by rules, not by a list of files.

1. Every folder named after the example, wherever it is: its package, its tests, its benchmarks.
2. Lines that end with `# example`, and lines between `# example: begin` and `# example: end`, in any file; in Markdown,
   `<!-- example: begin -->` and `<!-- example: end -->`.
3. Its name in `include/project.py`.
4. Every file of Python whose code names its package after that: its Dags and plugins.
5. JSON Schemas of topics that nobody declares any more, and pictures that no page shows any more.

Nothing in a folder of another package is changed, whatever it is called and whatever its lines end with.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from scaffold.editing import without_package
from scaffold.errors import Refused
from scaffold.trial import Trial, of_the_project, trial

EXAMPLE = "water"
BINDING = "include/project.py"
PICTURES = ("docs/screenshots",)
_NAMES_IT = re.compile(rf"\b(include|benchmarks|tests(\.\w+)*)\.{EXAMPLE}\b")
_OPEN, _CLOSE = ("# example: begin", "<!-- example: begin -->"), ("# example: end", "<!-- example: end -->")
_MARK = re.compile(r"(#|<!--) example( -->)?\s*$")
# Files with marks; others may hold anything.
_TEXTS = {".py", ".md", ".yml", ".yaml", ".toml", ".cfg", ".ini", ".txt", ".example", ""}


def remove_example(root: Path, *, is_forced: bool = False) -> list[str]:
    """Remove the example.

    Args:
        root: The project's folder.
        is_forced: Whether to do it with changes that are not committed.

    Returns:
        What to print.

    Raises:
        Refused: Nothing was removed; the text says why.
    """
    # Also without the package: an earlier removal may have been killed in the middle.
    if not (root / "include" / EXAMPLE).exists() and not any(map(_is_of_the_example, of_the_project(root))):
        raise Refused(f"there is no include/{EXAMPLE}/: the example is removed already")
    if not is_forced:
        _refuse_uncommitted(root)
    pictures = _pictures(root)
    with trial(root) as copy:
        _remove(copy)
        changed = [path for path in copy.changed() if path.endswith(".py")]
        copy.tidy(changed)
        copy.run("loading the remaining project", "python", "-c", "import include.project")
        copy.run("updating contracts/", "python", "-m", "include.streams.contracts", "write")
        removed, changed = copy.removed(), copy.changed()
        copy.apply()
    unused = [path for path in pictures if not _is_shown(root, path)]
    for path in unused:
        path.unlink()
    return _report([*removed, *(str(path.relative_to(root)) for path in unused)], changed)


def _refuse_uncommitted(root: Path) -> None:
    done = subprocess.run(
        ["git", "-C", str(root), "status", "--porcelain"], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise Refused("this folder is no git repository, so nothing could be restored: run it again with FORCE=1")
    if done.stdout.strip():
        count = len(done.stdout.splitlines())
        raise Refused(f"{count} changes are not committed: commit them first, or run it again with FORCE=1")


def _is_of_the_example(path: str) -> bool:
    return EXAMPLE in Path(path).parent.parts


def _is_of(path: str, packages: Collection[str]) -> bool:
    """Whether a file is in a folder of one of these packages, such as include/shop/ or tests/unit/shop/."""
    parts = Path(path).parent.parts
    place = {"include": 1, "benchmarks": 1, "tests": 2}.get(parts[0]) if parts else None
    return place is not None and len(parts) > place and parts[place] in packages


def _code_names_it(source: str) -> bool:
    """Whether a module names the example's package; comments and docstrings do not count."""
    if not _NAMES_IT.search(source):
        return False
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant("")
    return _NAMES_IT.search(ast.unparse(tree)) is not None


def _remove(copy: Trial) -> None:
    declared = (re.fullmatch(r"include/(\w+)/package\.py", path) for path in copy.paths())
    packages = {found[1] for found in declared if found} - {EXAMPLE}
    for path in copy.paths():
        if _is_of_the_example(path) and not _is_of(path, packages):
            copy.remove(path)
    for path in copy.paths():
        if _is_of(path, packages):
            continue
        if Path(path).suffix in _TEXTS or Path(path).name.startswith("."):
            text = copy.read(path) or ""
            if (left := without_marked(text, path)) != text:
                copy.write(path, left)
    copy.write(BINDING, without_package(copy.read(BINDING) or "", EXAMPLE))
    theirs = [path for path in copy.paths() if path.endswith(".py") and _code_names_it(copy.read(path) or "")]
    if mixed := [p for p in theirs if _is_of(p, packages) or _imports_any(copy.read(p) or "", packages)]:
        raise Refused(f"nothing was removed: {', '.join(mixed)} use the example and another package; change them first")
    for path in theirs:
        copy.remove(path)


def _imports_any(source: str, packages: Collection[str]) -> bool:
    """Whether a module imports from one of these packages."""
    modules = {node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    return any(module.split(".")[1] in packages for module in modules if module.startswith("include."))


def without_marked(text: str, path: str) -> str:
    """The text without the lines that are marked as the example's.

    Args:
        text: The text of a file.
        path: The file's path, for the error.

    Raises:
        Refused: A mark that opens is not closed, or the other way round.
    """
    kept: list[str] = []
    is_open = has_removed = False
    for line in text.splitlines(keepends=True):
        mark = line.strip()
        if mark in (*_OPEN, *_CLOSE):
            if is_open == (mark in _OPEN):
                raise Refused(f"nothing was removed: {path} has {mark!r} twice in a row; repair the marks")
            is_open = mark in _OPEN
            has_removed = True
        elif is_open or _MARK.search(line):
            has_removed = True
        elif mark or not has_removed or (kept and kept[-1].strip()):
            # Of the empty lines around what was removed, one stays.
            kept.append(line)
            has_removed = False
    if is_open:
        raise Refused(f"nothing was removed: {path} has no end of {_OPEN[0]!r}; repair the marks")
    return "".join(kept)


def _pictures(root: Path) -> list[Path]:
    return [path for folder in PICTURES for path in (root / folder).glob("*.png")]


def _is_shown(root: Path, picture: Path) -> bool:
    pages = [root / "README.md", *(root / "docs").rglob("*.md")]
    return any(picture.name in page.read_text(encoding="utf-8") for page in pages)


def _report(removed: list[str], changed: list[str]) -> list[str]:
    def place(path: str) -> str:
        parts = Path(path).parts
        return str(Path(*parts[: parts.index(EXAMPLE) + 1])) if EXAMPLE in parts else str(Path(path).parent)

    counts = Counter(map(place, removed))
    return [
        f"removed {len(removed)} files:",
        *(f"  {count:4} in {folder}" for folder, count in sorted(counts.items())),
        f"changed {len(changed)}: {', '.join(changed)}",
        "",
        "The pages in docs/ still use names of the example in their explanations.",
        "The local stack keeps the example's topics and tables: `.venv/bin/python -m stack remove` deletes its data.",
        "Dependencies that only the example needs stay in pyproject.toml: altair, vl-convert-python.",
        "",
        "next:",
        "  make lint test-fast",
        "  make topic       lists the options for a topic of your own",
        "  git add -A && git commit",
    ]
