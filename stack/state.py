"""What a stack stores between starts: ports, passwords, addresses. One JSON file that only its owner can read."""

import json
import os
import secrets
from pathlib import Path
from typing import Any


class State:
    """A dict in FOLDER/state.json; `set` writes the file at once, so a start after a kill reads the same values."""

    def __init__(self, folder: Path):
        self.path = folder / "state.json"
        self._values: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def get(self, name: str) -> Any:
        return self._values.get(name)

    def set(self, name: str, value: Any) -> None:
        self._values[name] = value
        temporary = self.path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(self._values, file, indent=2)
        os.replace(temporary, self.path)  # a kill in the middle leaves the old file, not half of the new one

    def ports(self) -> list[int]:
        """All chosen ports."""
        return [value for name, value in self._values.items() if name.startswith("port.") and value]

    def secret(self, name: str, length_bytes: int = 32) -> str:
        """A random secret, created once and kept. Only hex digits, because it goes into URLs and configuration.

        Args:
            name: The secret's name.
            length_bytes: How many random bytes; the text has twice as many characters.
        """
        name = f"secret.{name}"
        if not self.get(name):
            self.set(name, secrets.token_hex(length_bytes))
        return self.get(name)
