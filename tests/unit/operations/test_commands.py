"""A command prints its results, and nothing else, on standard output; what goes wrong is one line and exit code 1."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from include.streams.operations.commands import NotWell, run, who

PROJECT = Path(__file__).resolve().parents[3]


def expected() -> tuple[type[Exception], ...]:
    return OperationalError, ValueError


def raising(error: Exception):
    def action() -> list[str]:
        raise error

    return action


# What a deployment's own logging says must not matter.
PROBE = """
import logging, sys
from include.streams.operations.commands import run

def action():
    import airflow.settings
    print("said by the way")
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
    for line in ("said by the way", "an error of Airflow's", "mind this"):
        assert line in done.stderr
    assert "how it goes" not in done.stderr


def test_an_answer_that_is_no_good_one_is_a_result_with_code_1(capsys):
    assert run(raising(NotWell(["one stands still", "one is well"])), expected) == 1
    assert capsys.readouterr().out == "one stands still\none is well\n"


def test_an_expected_error_is_one_line_and_any_other_is_shown_whole(capsys):
    assert run(raising(ValueError("no such\n  thing")), expected) == 1
    assert tuple(capsys.readouterr()) == ("", "no such thing\n")
    with pytest.raises(TypeError):
        run(raising(TypeError("a mistake in the code")), expected)


def test_a_database_error_is_told_in_the_drivers_words(capsys):
    error = OperationalError("select 1", {}, Exception("connection refused\n\tis it running?"))
    assert run(raising(error), expected, database="connection somewhere") == 1
    assert tuple(capsys.readouterr()) == ("", "connection somewhere: connection refused is it running?\n")


def test_a_connection_that_is_not_defined_is_expected_of_every_command(capsys):
    from airflow.sdk import BaseHook

    assert run(lambda: [BaseHook.get_connection("no_such_connection").host or ""], tuple) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "no_such_connection" in err


def test_who_decides_is_named_or_the_user_who_runs_the_command(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    assert (who(None), who("bert")) == ("ann", "bert")

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert who("bert") == "bert"
    with pytest.raises(ValueError, match="--by"):
        who(None)
