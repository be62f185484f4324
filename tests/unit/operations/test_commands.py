"""A command prints only results on standard output; an error is one line on standard error and exit code 1."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from include.streams.operations.commands import UnhealthyError, acting_user, run

PROJECT = Path(__file__).resolve().parents[3]


def expected() -> tuple[type[Exception], ...]:
    return OperationalError, ValueError


def raising(error: Exception):
    def action() -> list[str]:
        raise error

    return action


# The settings of a deployment's logging must not matter.
PROBE = """
import logging, sys
from include.streams.operations.commands import run

def action():
    import airflow.settings
    print("a line of an imported module")
    logging.getLogger("airflow.task").error("an error of Airflow's")
    logging.getLogger("some.library").info("how it goes")
    logging.getLogger("some.library").warning("mind this")
    return ["one", "two"]

sys.exit(run(action, lambda: ()))
"""


def test_nothing_but_results_reaches_standard_output():
    environment = {**os.environ, "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n"), done.stderr
    for line in ("a line of an imported module", "an error of Airflow's", "mind this"):
        assert line in done.stderr
    assert "how it goes" not in done.stderr


def test_a_check_that_finds_a_problem_prints_its_lines_and_exits_with_1(capsys):
    assert run(raising(UnhealthyError(["a: stopped", "b: running"])), expected) == 1
    assert capsys.readouterr().out == "a: stopped\nb: running\n"


def test_an_expected_error_is_one_line_and_any_other_a_traceback(capsys):
    assert run(raising(ValueError("no such\n  thing")), expected) == 1
    assert tuple(capsys.readouterr()) == ("", "no such thing\n")
    with pytest.raises(TypeError):
        run(raising(TypeError("a mistake in the code")), expected)


def test_a_database_error_has_the_text_of_the_driver(capsys):
    error = OperationalError("select 1", {}, Exception("connection refused\n\tis it running?"))
    assert run(raising(error), expected, database="connection somewhere") == 1
    assert tuple(capsys.readouterr()) == ("", "connection somewhere: connection refused is it running?\n")


def test_an_undefined_connection_is_an_expected_error_of_every_command(capsys):
    from airflow.sdk import BaseHook

    assert run(lambda: [BaseHook.get_connection("no_such_connection").host or ""], tuple) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "no_such_connection" in err


def test_the_acting_user_is_the_named_one_or_the_one_who_runs_the_command(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    assert (acting_user(None), acting_user("bert")) == ("ann", "bert")

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert acting_user("bert") == "bert"
    with pytest.raises(ValueError, match="--by"):
        acting_user(None)
