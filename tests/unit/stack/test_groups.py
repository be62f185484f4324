"""Processes that a killed program leaves behind are found by their process group."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from stack import groups


def launch(folder: Path, name: str = "scheduler") -> subprocess.Popen:
    """A program with one child, as supervisord starts it: the leader of a group of its own."""
    script = "sleep 300 & echo $!; exec sleep 300"
    command = [sys.executable, "-m", "stack.groups", str(folder), name, "/bin/sh", "-c", script]
    program = subprocess.Popen(command, process_group=0, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    program.child = int(program.stdout.readline())
    return program


def end(program: subprocess.Popen) -> None:
    os.kill(program.pid, signal.SIGKILL)
    program.wait()


def test_the_next_start_ends_the_children_of_a_killed_program(tmp_path):
    first = launch(tmp_path)
    end(first)
    assert psutil.pid_exists(first.child)
    assert [process.pid for process in groups.all_members(tmp_path)] == [first.child]
    second = launch(tmp_path)
    try:
        deadline = time.monotonic() + 10
        while psutil.pid_exists(first.child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not psutil.pid_exists(first.child)
        assert psutil.pid_exists(second.child)
    finally:
        os.killpg(second.pid, signal.SIGKILL)
        second.wait()


def test_other_programs_and_stacks_are_not_ended(tmp_path):
    programs = [launch(tmp_path, "triggerer"), launch(tmp_path / ".." / "other", "scheduler")]
    own = launch(tmp_path)
    try:
        pids = {process.pid for process in groups.members(tmp_path, "scheduler")}
        assert pids == {own.pid, own.child}
    finally:
        for program in [*programs, own]:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()


def test_a_reused_group_number_is_not_ended(tmp_path):
    program = launch(tmp_path)
    try:
        (tmp_path / "groups" / "scheduler").write_text(f"{program.pid} {os.getsid(0) + 1}")
        assert groups.members(tmp_path, "scheduler") == []
    finally:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()
