"""What `make remove-example` counts as the example's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from scaffold.errors import Refused
from scaffold.removal import EXAMPLE, _remove, remove_example, without_marked
from scaffold.trial import trial
from tests.unit.scaffold.samples import ROOT

# In capitals, so that this file has no marks of its own.
MARKED = """\
kept
one  # EXAMPLE
# for example
    # EXAMPLE: begin
gone
    # EXAMPLE: end
<!-- EXAMPLE: begin -->
gone
<!-- EXAMPLE: end -->
<p> <!-- EXAMPLE -->
kept
""".replace("EXAMPLE", "example")


def test_marked_lines_go():
    assert without_marked(MARKED, "Makefile") == "kept\n# for example\nkept\n"


def test_of_the_empty_lines_around_a_marked_part_one_stays():
    text = "a\n\n<!-- example: begin -->\nb\n<!-- example: end -->\n\nc\n\n\nd\n"
    assert without_marked(text, "README.md") == "a\n\nc\n\n\nd\n"


@pytest.mark.parametrize("text", ["# example: begin\n", "# example: end\n", "# example: begin\n# example: begin\n"])
def test_marks_that_do_not_fit_are_refused(text: str):
    with pytest.raises(Refused, match=r"^nothing was removed: Makefile has .* repair the marks"):
        without_marked(text, "Makefile")


def test_all_marks_of_this_project_fit():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in filter(None, listed.split("\0")):
        if (
            (ROOT / path).suffix in (".py", ".md", ".yml", ".yaml", "")
            and "scaffold" not in path
            and (ROOT / path).is_file()
        ):
            without_marked((ROOT / path).read_text(), path)


def project(folder: Path, more: dict[str, str] | None = None) -> Path:
    """A small project in git with an example."""
    files = {
        "include/project.py": f"from include.{EXAMPLE}.package import WATER\n\nPROJECT = Project(WATER)\n",
        f"include/{EXAMPLE}/package.py": "WATER = 1\n",
        **(more or {}),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "start"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def test_uncommitted_changes_are_a_reason_to_refuse(tmp_path: Path):
    folder = project(tmp_path)
    (folder / "new.py").touch()
    with pytest.raises(Refused, match=r"^1 changes are not committed: commit them first, or run it again with FORCE=1"):
        remove_example(folder)


def test_a_module_that_needs_the_example_and_another_package_is_named(tmp_path: Path):
    mixed = f"from include.{EXAMPLE}.assets import A\nfrom include.shop.assets import B\n"
    folder = project(tmp_path, {"dags/batch/both.py": mixed, "include/shop/package.py": "SHOP = 1\n"})
    with pytest.raises(Refused, match=r"nothing was removed: dags/batch/both\.py use the example and another package"):
        remove_example(folder, is_forced=True)
    assert (folder / "include" / EXAMPLE).exists()


def test_a_second_time_there_is_nothing_to_remove(tmp_path: Path):
    (tmp_path / "include").mkdir()
    with pytest.raises(Refused, match=f"there is no include/{EXAMPLE}/: the example is removed already"):
        remove_example(tmp_path)


SHOP = {"include/shop/package.py": "SHOP = 1\n"}


def test_files_of_another_package_stay_as_they_are(tmp_path: Path):
    files = {
        f"include/shop/{EXAMPLE}/levels.py": "LEVEL = 1\n",
        f"tests/unit/shop/{EXAMPLE}/test_levels.py": "LEVEL = 1\n",
        "include/shop/prices.py": f'"""As in include.{EXAMPLE}.alerts."""\n\nPRICE = 1  # example\n',
    }
    folder = project(tmp_path, SHOP | files)
    with trial(folder) as copy:
        _remove(copy)
        assert {path: copy.read(path) for path in files} == files
        assert copy.removed() == [f"include/{EXAMPLE}/package.py"]


def test_a_module_that_names_the_example_only_in_its_text_stays(tmp_path: Path):
    own, of_the_example = "dags/batch/own.py", "dags/batch/levels.py"
    files = {
        own: f'"""Like include.{EXAMPLE}.package."""\n\n# include.{EXAMPLE}.alerts has another one\nDAG = 1\n',
        of_the_example: f'EFFECT = "include.{EXAMPLE}.alerts:effect"\n',
    }
    with trial(project(tmp_path, SHOP | files)) as copy:
        _remove(copy)
        assert copy.removed() == [of_the_example, f"include/{EXAMPLE}/package.py"]
        assert copy.read(own) == files[own]


def test_a_module_of_another_package_that_needs_the_example_is_named(tmp_path: Path):
    folder = project(tmp_path, SHOP | {"include/shop/levels.py": f"import include.{EXAMPLE}.alerts\n"})
    with trial(folder) as copy, pytest.raises(Refused, match=r"include/shop/levels\.py use the example and another"):
        _remove(copy)


def test_a_removal_that_was_killed_in_the_middle_can_be_finished(tmp_path: Path):
    folder = project(tmp_path, {f"tests/unit/{EXAMPLE}/test_levels.py": "LEVEL = 1\n"})
    # What is removed first.
    (folder / "include" / EXAMPLE / "package.py").unlink()
    (folder / "include" / EXAMPLE).rmdir()
    with pytest.raises(Refused, match="1 changes are not committed"):
        remove_example(folder)
