"""The interface of a service of the stack: preparation, programs, and a check whether it is ready."""

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
    """The base class of services.

    Args:
        state: The state of the stack.
        folder: The stack's folder; the service's own folder is below it.
        report: Called with each line of progress.
    """

    name: str
    external_variable: str | None = None  # environment variable with the address of a service that runs elsewhere
    ports: tuple[str, ...] = ()  # names of the ports that it listens on
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
        """Whether the service runs elsewhere, so that the stack does not start it."""
        return bool(self.external)

    def prepare(self) -> None:
        """Create what the programs need before they start: ports, data directories, configuration."""

    def programs(self) -> list[Program]:
        """The processes, one for each of `program_names`; called after `prepare`."""
        return []

    def is_ready(self) -> bool:
        """Ask the service whether it is ready; never raises, and waits at most about a second."""
        return True

    def after_start(self) -> None:
        """Create what needs the running service: databases, buckets."""

    def environment(self) -> dict[str, str]:
        """The environment variables that clients of the service need."""
        return {}

    def endpoints(self) -> dict[str, Any]:
        """The service's part of `make status JSON=1`."""
        return {}

    def remove(self) -> None:
        """Delete the service's files outside the stack's folder."""
