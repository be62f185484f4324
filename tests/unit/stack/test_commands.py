"""What `make up` and `make down` print, and the one sentence of a service that does not start."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack import Stack, StackError
from stack import __main__ as commands
from stack.state import State

ENDPOINTS = {
    "services": {"kafka": {"state": "RUNNING", "pid": 7, "log": "/logs/kafka.log"}},
    "kafka": {"bootstrap_servers": "127.0.0.1:20001"},
    "postgres": None, "object_store": None, "connect": None, "registry": None,
    "airflow": {"url": "http://127.0.0.1:20002", "username": "admin", "password": "secret"},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "local"


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command of the stack, whose services do nothing."""
    calls: list[str] = []
    monkeypatch.setattr(Stack, "up", lambda self: calls.append("up"))
    monkeypatch.setattr(Stack, "down", lambda self: calls.append("down"))
    monkeypatch.setattr(Stack, "endpoints", lambda self: ENDPOINTS)
    monkeypatch.setattr(Stack, "is_running", lambda self: calls != ["down"])

    def command(word: str) -> str:
        calls.clear()
        assert commands.main(["--folder", str(folder), word]) == 0
        assert calls in ([word], [])
        return capsys.readouterr().out

    return command


def test_after_the_start_addresses_and_next_commands_are_shown(run):
    lines = run("up").splitlines()
    assert "Airflow         http://127.0.0.1:20002 (user admin, password secret)" in lines
    following = lines[lines.index("next:") + 1 :]
    assert [line.split()[1] for line in following] == ["send", "look", "logs", "down"]


def test_after_the_stop_the_data_that_stay_are_named_with_how_to_delete_them(run, folder: Path, tmp_path: Path):
    outside = tmp_path / "postgres"
    for path in (folder, outside):
        path.mkdir()
        (path / "data").write_bytes(bytes(2_000_000))
    State(folder).set("postgres.home", str(outside))
    first, second = run("down").splitlines()
    assert first == f"stopped everything; the data and the logs stay in {folder} and {outside} (4 MB)"
    assert "make up" in second
    assert "`.venv/bin/python -m stack remove` deletes the data" in second


def test_without_a_stack_there_is_nothing_to_stop(run, folder: Path):
    assert run("down") == f"there is no stack in {folder}; `make up` starts one\n"
    assert not folder.exists()


def test_an_error_of_a_client_becomes_a_sentence_with_the_log(folder: Path, monkeypatch: pytest.MonkeyPatch):
    stack = Stack(folder, ("postgres",))
    monkeypatch.setattr(stack, "_start", lambda service: None)
    monkeypatch.setattr(stack, "_wait", lambda service: None)

    def refused() -> None:
        raise ConnectionRefusedError("connection refused\nIs the server running?")

    monkeypatch.setattr(stack.postgres, "after_start", refused)
    with pytest.raises(StackError) as raised:
        stack._start_in_order()
    assert str(raised.value) == (
        "postgres started, but could not be prepared (ConnectionRefusedError: connection refused); see "
        f"{folder}/logs/postgres.log, and run it again"
    )


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("FATAL", "postgres does not start: FATAL: no room; see {logs}/postgres.log"),
        (
            "RUNNING",
            "postgres is not ready after 0 s; if the machine is busy, run it again (last line of postgres: FATAL: no "
            "room); see {logs}/postgres.log",
        ),
    ],
)
def test_a_service_that_does_not_start_is_told_from_a_slow_one(state, said, folder: Path, monkeypatch):
    stack = Stack(folder, ("postgres",))
    logs = folder / "logs"
    logs.mkdir(parents=True)
    (logs / "postgres.log").write_text("starting\nFATAL: no room\nbye\n")
    monkeypatch.setattr(stack.supervisor, "info", lambda: {"postgres": {"state": state}})
    monkeypatch.setattr(stack.postgres, "ready_seconds", 0)
    monkeypatch.setattr(stack.postgres, "is_ready", lambda: False)
    with pytest.raises(StackError) as raised:
        stack.wait_until_ready("postgres")
    assert str(raised.value) == said.format(logs=logs)
