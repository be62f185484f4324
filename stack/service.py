"""What a service of the stack is: something to prepare, programs to run, a sign that it is ready."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stack.state import State


@dataclass(frozen=True)
class Program:
    """One process that supervisord keeps running."""

    name: str
    command: list[str]
    directory: Path | None = None
    user: str | None = None
    stop_signal: str = "TERM"
    stop_seconds: int = 15


class Service:
    """Base of the services. `folder` is the service's own, below the stack's."""

    name: str
    external_variable: str | None = None  # environment variable with the address of a service run by somebody else
    ports: tuple[str, ...] = ()  # names of the ports it listens on
    program_names: tuple[str, ...] = ()
    ready_seconds = 120

    def __init__(self, state: State, folder: Path, report: Callable[[str], None]):
        self.state = state
        self.folder = folder / self.name
        self.report = report

    @property
    def external(self) -> str | None:
        """The address from the environment at the last `up`."""
        return (self.state.get("external") or {}).get(self.name)

    @property
    def runs_elsewhere(self) -> bool:
        """The stack starts nothing for it."""
        return bool(self.external)

    def prepare(self) -> None:
        """Makes what the programs need before they start: ports, data directories, configuration."""

    def programs(self) -> list[Program]:
        """After `prepare`: the processes, one for each of `program_names`."""
        return []

    def is_ready(self) -> bool:
        """Asks the service itself; raises nothing, waits at most about a second."""
        return True

    def after_start(self) -> None:
        """Makes what can only be made in a running service: databases, buckets."""

    def environment(self) -> dict[str, str]:
        """What clients of the service need."""
        return {}

    def endpoints(self) -> dict[str, Any]:
        """The service's part of `make status JSON=1`."""
        return {}

    def remove(self) -> None:
        """Deletes what the service keeps outside the stack's folder."""
