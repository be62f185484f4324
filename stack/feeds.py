"""HTTP sources that the project polls, served by its own simulators: `Demo.feeds` of its packages.

Each entry is {Airflow connection: [module, arguments...]}; the module runs with `--port PORT` added.
"""

import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from stack.service import Program, Service

PROJECT = Path(__file__).resolve().parents[1]


class Feeds(Service):
    name = "feeds"

    def __init__(self, *args, commands: dict[str, list[str]]):
        super().__init__(*args)
        self.commands = commands
        self.ports = self.program_names = tuple(commands)

    def _url(self, connection: str) -> str:
        return f"http://127.0.0.1:{self.state.get(f'port.{connection}')}"

    def programs(self) -> list[Program]:
        return [
            Program(
                connection,
                [sys.executable, "-m", *command, "--port", str(self.state.get(f"port.{connection}"))],
                directory=PROJECT,
            )
            for connection, command in self.commands.items()
        ]

    def is_ready(self) -> bool:
        return all(_answers(self._url(connection)) for connection in self.commands)

    def environment(self) -> dict[str, str]:
        return {
            f"AIRFLOW_CONN_{connection.upper()}": self._url(connection)
            for connection in self.commands
            if self.state.get(f"port.{connection}")
        }

    def endpoints(self) -> dict[str, Any]:
        return {"feeds": {c: self._url(c) for c in self.commands if self.state.get(f"port.{c}")}}


def _answers(url: str) -> bool:
    """Whether a server answers, whatever its response."""
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
