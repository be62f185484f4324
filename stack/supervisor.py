"""One supervisord per stack: it starts the programs, restarts those that die, and keeps and rotates their logs."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import psutil
from supervisor.xmlrpc import SupervisorTransport

from stack import groups
from stack.errors import StackError
from stack.service import Program
from stack.state import State

# Set in the environment of supervisord, and so of all its descendants: it identifies the processes that a killed
# supervisord leaves behind.
MARKER = "STACK_MARKER"
LOG_BYTES, LOG_BACKUPS = 10 * 1024**2, 2


class Supervisor:
    def __init__(self, state: State, folder: Path):
        self.state, self.folder = state, folder
        self.logs = folder / "logs"
        self.config = folder / "supervisord.conf"

    @property
    def socket(self) -> Path:
        """In the temporary directory: a socket's path has at most 108 bytes, and a checkout's path can be longer."""
        return Path(self.state.get("socket_folder") or "/nonexistent") / "s"

    def start(self, programs: Iterable[Program], environment: dict[str, str]) -> None:
        self.stop()
        self.end_leftovers()
        self.state.set("socket_folder", tempfile.mkdtemp(prefix="stack-"))  # mode 0700
        self.logs.mkdir(mode=0o700, exist_ok=True)
        _write_private(self.config, config_text(self.socket, self.folder, self.logs, programs))
        # supervisord passes its own environment to every program. So passwords are there and not on a command line,
        # where every user of the machine could read them.
        environment = {**os.environ, **environment, MARKER: str(self.folder)}
        with (self.logs / "supervisord.out").open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(self.config)],
                cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,  # Ctrl-C in this terminal must not reach the services
            )  # fmt: skip
        deadline = time.monotonic() + 15
        while not self.is_running():
            if process.poll() is not None or time.monotonic() > deadline:
                raise StackError(
                    f"supervisord does not start: {_last_line(self.logs / 'supervisord.out')}; see "
                    f"{self.logs}/supervisord.out"
                )
            time.sleep(0.05)

    @property
    def proxy(self) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self.socket}")
        return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def is_running(self) -> bool:
        try:
            return self.proxy.getState()["statename"] == "RUNNING"
        except (OSError, xmlrpc.client.Error):
            return False

    def pid(self) -> int | None:
        return self.proxy.getPID() if self.is_running() else None

    def info(self) -> dict[str, dict[str, Any]]:
        """{program: {"state": ..., "pid": ... | None, "log": path}} of everything that is configured."""
        if not self.is_running():
            return {}
        return {
            entry["name"]: {
                "state": entry["statename"],
                "pid": entry["pid"] or None,
                "log": entry["stdout_logfile"],
            }
            for entry in self.proxy.getAllProcessInfo()
        }

    def start_program(self, name: str) -> None:
        try:
            self.proxy.startProcess(name, False)
        except xmlrpc.client.Fault as fault:
            if "ALREADY_STARTED" not in fault.faultString:
                raise StackError(f"cannot start {name}: {fault.faultString}; see {self.logs / name}.log") from fault

    def stop_program(self, name: str) -> None:
        try:
            self.proxy.stopProcess(name, True)
        except xmlrpc.client.Fault as fault:
            if "NOT_RUNNING" not in fault.faultString:
                raise StackError(f"cannot stop {name}: {fault.faultString}; see {self.logs / name}.log") from fault

    def _stop_together(self, names: set[str]) -> None:
        for name in names:
            with contextlib.suppress(xmlrpc.client.Fault):  # NOT_RUNNING: it had already stopped
                self.proxy.stopProcess(name, False)
        # supervisord kills programs that do not end in time, so this loop ends.
        while any(entry["state"] == "STOPPING" for name, entry in self.info().items() if name in names):
            time.sleep(0.1)

    def last_log_line(self, name: str) -> str:
        return _last_line(self.logs / f"{name}.log")

    def stop(self, first: Iterable[Collection[str]] = ()) -> None:
        """End supervisord and, through it, every program; returns when they are gone.

        Args:
            first: Groups of programs to stop first, one group after the other, because they need the programs that are
                stopped later for a clean end.
        """
        if not (pid := self.pid()):
            return
        names = set(self.info())
        for group in first:
            self._stop_together(names & set(group))
            names -= set(group)
        self._stop_together(names)
        process = psutil.Process(pid)
        self.proxy.shutdown()
        try:
            process.wait(timeout=60)
        except psutil.TimeoutExpired:
            process.kill()
        shutil.rmtree(self.socket.parent, ignore_errors=True)

    def end_leftovers(self) -> list[str]:
        """End the processes that a killed supervisord has left behind: those with this folder's marker."""
        processes = leftovers(self.folder)
        for process in processes:
            _send(process, _gentle_signal(process))
        _, alive = psutil.wait_procs(processes, timeout=10)
        for process in alive:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=5)
        shutil.rmtree(self.socket.parent, ignore_errors=True)
        return sorted({_name(process) for process in processes})


def leftovers(folder: Path) -> list[psutil.Process]:
    """The processes that were started by the stack of this folder."""
    processes = groups.all_members(folder)
    known = {process.pid for process in processes}
    for process in psutil.process_iter():
        try:
            if process.pid in {os.getpid(), *known} or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(MARKER) == str(folder):
                processes.append(process)
        except psutil.Error:
            continue  # gone, or another user's
    return processes


def config_text(socket: Path, folder: Path, logs: Path, programs: Iterable[Program]) -> str:
    """supervisord's configuration. `%` begins an expansion there, so each `%` in a value is doubled."""

    def escaped(text: object) -> str:
        return str(text).replace("%", "%%")

    owner = f"user={os.geteuid()}" if os.geteuid() == 0 else ""
    sections = [
        f"""[unix_http_server]
file={escaped(socket)}
chmod=0600

[supervisord]
logfile={escaped(logs)}/supervisord.log
logfile_maxbytes={LOG_BYTES}
logfile_backups={LOG_BACKUPS}
pidfile={escaped(folder)}/supervisord.pid
childlogdir={escaped(logs)}
{owner}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
    ]
    for program in programs:
        sections.append(
            f"""[program:{program.name}]
command={escaped(shlex.join(program.command))}
directory={escaped(program.directory or folder)}
{f"user={program.user}" if program.user else ""}
autostart=false
autorestart=true
startsecs=1
startretries=10
stopsignal={program.stop_signal}
stopwaitsecs={program.stop_seconds}
stopasgroup=true
killasgroup=true
redirect_stderr=true
stdout_logfile={escaped(logs)}/{program.name}.log
stdout_logfile_maxbytes={LOG_BYTES}
stdout_logfile_backups={LOG_BACKUPS}
"""
        )
    return "\n".join(sections)


def _gentle_signal(process: psutil.Process) -> int:
    # On TERM PostgreSQL waits for its clients; on INT it disconnects them.
    return signal.SIGINT if "postgres" in _name(process) else signal.SIGTERM


def _send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return "gone"


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def _last_line(path: Path) -> str:
    """The last line with an error, else the last line.

    A program that is restarted again and again logs its error early.
    """
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.exists() else []
    wrong = [line for line in lines if any(word in line for word in ("ERROR", "FATAL", "Error:", "Exception"))]
    return (wrong or lines or ["no output"])[-1][:300]
