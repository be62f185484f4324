"""The names of what `make topic` writes, all derived from the topic's name and the package's."""

from __future__ import annotations

import builtins
import keyword
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from include.streams.contracts import At, ForeignContract, FromHeader
from include.streams.validators.coordinates import COORDINATES, LOG
from scaffold.errors import Refused

# Modules that each package has.
MODULES = frozenset(
    {"topics", "consumers", "assets", "tables", "package", "simulators", "migrations", "samples", "sampled_traffic"}
)
# Names that mean something else where a field is declared, and columns that a table has besides its fields.
_TAKEN = frozenset({"bool", "date", "float", "int", "str", "version", "claim_id", "contract", "event_id", "fields"})
TAKEN_FIELDS = _TAKEN | {"recorded_at", LOG, *COORDINATES, *dir(BaseModel), *vars(ForeignContract), *keyword.kwlist}
MAX_NAME = 40
MAX_WHOLE = 48


@dataclass(frozen=True)
class Names:
    """The names of a topic's parts.

    Attributes:
        topic: The topic in Kafka: "github.push".
        package: The folder in include/: "github".
        stem: The module of its effect or aggregate: "push".
        lane: "event" or "standard".
        simulators: The module that sends samples; another one if the package has simulators of its own.
    """

    topic: str
    package: str
    stem: str
    lane: str
    simulators: str = "simulators"

    @property
    def whole(self) -> str:
        """Unique in the project: "github_push"."""
        return self.stem if self.stem == self.package else f"{self.package}_{self.stem}"

    @property
    def constant(self) -> str:
        return self.stem.upper()

    @property
    def verb(self) -> str:
        return "record" if self.lane == "event" else "count"

    @property
    def consumer(self) -> str:
        """The consumer, its group and its Dag."""
        return f"{self.verb}_{self.whole}"

    @property
    def consumer_constant(self) -> str:
        return f"{self.verb}_{self.stem}".upper()

    @property
    def table(self) -> str:
        """The table in the database."""
        return self.whole if self.lane == "event" else f"{self.whole}_days"

    @property
    def table_variable(self) -> str:
        return self.stem if self.lane == "event" else f"{self.stem}_days"

    @property
    def class_prefix(self) -> str:
        return camel(self.stem)


def names_of(topic: str, package: str | None, lane: str, root: Path) -> Names:
    """The names of a new topic's parts.

    Args:
        topic: The topic's name in Kafka.
        package: The package's name; None for the first part of the topic's name.
        lane: "event" or "standard".
        root: The project's folder.

    Raises:
        Refused: A name cannot be used.
    """
    first = re.split(r"[._-]", topic)[0]
    package = package or snake(first)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", package) or keyword.iskeyword(package):
        raise Refused(
            f"PACKAGE={package}: a package's name has lower-case letters, digits and '_'; give another with PACKAGE="
        )
    taken = {path.name for path in (root / "include" / "streams").iterdir()} | {"streams", "project"}
    if package in taken:
        raise Refused(f"package {package}: a folder of the library has this name; give another with PACKAGE=")
    stem = snake(topic)
    rest = stem.removeprefix(f"{package}_")
    stem = rest if rest and not rest[0].isdigit() else stem
    while len(f"{package}_{stem}") > MAX_WHOLE and "_" in stem:
        # Names in the database have 63 characters, with a prefix and a suffix.
        stem = snake(stem.partition("_")[2])
    if len(f"{package}_{stem}") > MAX_WHOLE:
        raise Refused(
            f"NAME={topic}: names that are derived from it would be too long; give a shorter package with PACKAGE="
        )
    if stem in MODULES or stem in dir(builtins) or keyword.iskeyword(stem):
        stem = f"{stem}_topic"
    return Names(topic, package, stem, lane, _simulators(root / "include" / package))


def _simulators(package: Path) -> str:
    file = package / "simulators.py"
    has_own = (package / "simulators").exists() or (file.exists() and "TRAFFIC = (" not in file.read_text())
    return "sampled_traffic" if has_own else "simulators"


def snake(text: str) -> str:
    """`repository.fullName` -> `repository_full_name`."""
    text = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", text)
    found = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return found if found and not found[0].isdigit() else f"x_{found}".rstrip("_")


def camel(text: str) -> str:
    """`pull_request` -> `PullRequest`."""
    found = "".join(part[:1].upper() + part[1:] for part in snake(text).split("_"))
    return found if found.isidentifier() else f"Type{found}"


def field_name(source: At | FromHeader, taken: set[str]) -> str:
    """A name of a field that no other field has: the path, or its last parts if the path is long.

    Args:
        source: Where the field comes from.
        taken: The names of the other fields.
    """
    if isinstance(source, FromHeader):
        parts = [snake(source.name.lower().removeprefix("x-"))]
    else:
        parts = [snake(part) for part in source.names]
    candidates = ["_".join(parts)]
    if len(candidates[0]) > MAX_NAME:
        candidates[:0] = ["_".join(parts[-count:]) for count in (2, 3) if count < len(parts)]
    candidates = [name for name in candidates if len(name) <= MAX_NAME] or [candidates[-1][:MAX_NAME].rstrip("_")]
    base = next((name for name in candidates if name not in taken), candidates[0])
    if base in TAKEN_FIELDS or base.startswith("model_"):
        base = f"{base}_value"
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name
