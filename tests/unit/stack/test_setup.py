"""`make setup` with programs that do nothing but wait and write lines, as uv does: what a person sees meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from stack.requirements import PROJECT

LOCK = "one==1.0 \\\n    --hash=sha256:0\ntwo==2.0 ; python_version < '4' \\\n    --hash=sha256:1\n    # via one\n"


def members_of(group: int) -> list[psutil.Process]:
    """The processes of a process group that still run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class Setup:
    """A copy of the scripts, in which uv is `script`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("setup.sh", "progress.sh", "uv.lock"):
            (folder / "stack").mkdir(exist_ok=True)
            shutil.copy(PROJECT / "stack" / name, folder / "stack" / name)
        (folder / "requirements.lock").write_text(LOCK)
        self._program("python", "exit 0")

    def _program(self, name: str, script: str) -> None:
        path = self.folder / ".venv" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def start(self, script: str) -> subprocess.Popen[str]:
        self._program("uv", script)
        return subprocess.Popen(
            ["sh", self.folder / "stack" / "setup.sh"],
            env={**os.environ, "PROGRESS_SECONDS": "1"}, text=True, start_new_session=True,
            # A background job ignores this signal, and so would its processes.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, script: str) -> tuple[int, str, str]:
        process = self.start(script)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def test_each_step_is_named_and_a_long_one_shows_progress(setup: Setup):
    code, out, err = setup.run("echo 'Downloading pyarrow (45.1MiB)'; sleep 4; echo")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line for line in lines if "step" in line] == lines[:3]
    assert "step 3 of 3: the 2 packages of requirements.lock" in lines[2]
    assert "     1 s  Downloading pyarrow (45.1MiB)" in lines[3:-1]
    assert lines[-1] == "setup: done"
    assert (setup.folder / ".venv" / "setup.stamp").exists()


def test_a_failed_step_is_one_sentence_with_the_remedy(setup: Setup):
    code, out, err = setup.run("sleep 2; echo 'error: no route to host' >&2; exit 2")
    assert code == 1
    assert "     1 s" in out
    assert err.startswith("error: cannot install the packages: error: no route to host; check network, proxy and disk")
    assert len(err.splitlines()) == 1
    assert not (setup.folder / ".venv" / "setup.stamp").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_setup_prints_nothing_more(number: signal.Signals, setup: Setup):
    process = setup.start("exec sleep 30")
    assert process.stdout
    while "     1 s" not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, number) if number != signal.SIGKILL else process.kill()
    process.wait(timeout=20)
    # The progress of a killed setup notices it at its next line.
    time.sleep(2)
    waiting = {"sleep"} if number == signal.SIGKILL else set()  # the fake uv, which is no part of the script
    assert {member.name() for member in members_of(process.pid)} <= waiting
    for member in members_of(process.pid):
        member.kill()
    process.stdout.close()
