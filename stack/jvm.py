"""How Kafka's programs are run: one command line, one way of logging."""

from collections.abc import Iterable
from pathlib import Path

LOG_CONFIG = """\
status = error
rootLogger.level = INFO
rootLogger.appenderRef.stdout.ref = STDOUT
appender.stdout.type = Console
appender.stdout.name = STDOUT
appender.stdout.layout.type = PatternLayout
appender.stdout.layout.pattern = [%d] %p %m (%c{1})%n
"""


def command(java: Path, heap: str, classpath: Iterable[Path], folder: Path, main: str, *arguments: str) -> list[str]:
    """The command line of a Java program that logs to standard output. `folder` is its own."""
    log_config = folder / "log4j2.properties"
    log_config.write_text(LOG_CONFIG)
    return [
        str(java),
        heap,
        "-XX:TieredStopAtLevel=1",  # a third off the start; the throughput of one laptop's broker is not missed
        f"-Dlog4j2.configurationFile={log_config}",
        "-cp",
        ":".join(map(str, classpath)),
        main,
        *arguments,
    ]


def properties(settings: dict[str, str]) -> str:
    """Java's properties format; a backslash begins an escape there."""
    return "".join(f"{name}={value}\n".replace("\\", "\\\\") for name, value in settings.items())
