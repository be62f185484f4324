"""Dag files alone are deployed only if nothing else of the image has changed since the commit that is deployed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stack.requirements import PROJECT

SCRIPT = PROJECT / "deploy" / "decide.py"


@pytest.fixture
def repository(tmp_path: Path) -> Callable[..., str]:
    """Commit files of a new repository, {path: text or None to remove it}; returns the commit."""

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / ".dockerignore").write_text((PROJECT / ".dockerignore").read_text())

    def commit(**files: str | None) -> str:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_py", ".py").replace("_md", ".md")
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                path.unlink()
            else:
                path.write_text(text)
        git("add", "-A")
        git("commit", "-q", "--allow-empty", "-m", "a change")
        return git("rev-parse", "HEAD")

    return commit


def decision(folder: Path, commit: str) -> str:
    done = subprocess.run([sys.executable, SCRIPT, commit], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_dag_files_alone_are_deployed_alone(repository, tmp_path):
    first = repository(dags__a_py="1", include__a_py="1")
    repository(dags__a_py="2", docs__a_md="2")
    assert decision(tmp_path, first) == "dags-only"


def test_an_earlier_commit_of_include_is_not_forgotten(repository, tmp_path):
    first = repository(dags__a_py="1", include__a_py="1")
    repository(include__a_py="2")
    repository(dags__a_py="2")
    assert decision(tmp_path, first) == "image-and-dags"


@pytest.mark.parametrize("path", ["include__new_py", "plugins__a_py", "Dockerfile", "requirements_md", "tests__a_py"])
def test_anything_else_of_the_image_needs_the_image(repository, tmp_path, path):
    first = repository(dags__a_py="1")
    repository(**{path: "1", "dags__a_py": "2"})
    assert decision(tmp_path, first) == "image-and-dags"


def test_a_file_that_moves_from_include_to_dags_needs_the_image(repository, tmp_path):
    first = repository(include__a_py="the same text " * 20)
    repository(include__a_py=None, dags__a_py="the same text " * 20)
    assert decision(tmp_path, first) == "image-and-dags"


def test_files_that_no_image_has_need_no_deploy(repository, tmp_path):
    first = repository(dags__a_py="1")
    repository(docs__a_md="2", stack__a_py="2", benchmarks__b__c_py="2")
    assert decision(tmp_path, first) == "none"
    assert decision(tmp_path, repository()) == "none"


@pytest.mark.parametrize("commit", ["", "0" * 40, "main", "--output=x", "HEAD"])
def test_an_unknown_commit_needs_the_image(repository, tmp_path, commit):
    repository(dags__a_py="1")
    assert decision(tmp_path, commit) == "image-and-dags"


def test_a_commit_of_another_branch_needs_the_image(repository, tmp_path):
    first = repository(dags__a_py="1")
    other = repository(dags__a_py="2")
    subprocess.run(["git", "reset", "-q", "--hard", first], cwd=tmp_path, check=True)
    repository(dags__a_py="3")
    assert decision(tmp_path, other) == "image-and-dags"


def test_no_pattern_of_dockerignore_hides_dag_files_or_include():
    spec = importlib.util.spec_from_file_location("decide", SCRIPT)
    assert spec
    assert spec.loader
    decide = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(decide)
    ignored = decide.ignored_by_docker(PROJECT)
    for path in ("dags/a.py", "include/streams/a.py", "include/project.py", "plugins/a.py", "contracts/a.json"):
        assert decide.decide([path], ignored) != "none", path
