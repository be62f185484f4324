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
    """The command line of a Java program that logs to standard output.

    Args:
        java: The `java` executable.
        heap: The option for the heap's size, for example "-Xmx512m".
        classpath: The jars.
        folder: The program's own folder, in which the log configuration is written.
        main: The main class.
        *arguments: The program's arguments.
    """
    log_config = folder / "log4j2.properties"
    log_config.write_text(LOG_CONFIG)
    return [
        str(java),
        heap,
        "-XX:TieredStopAtLevel=1",  # a third off the start time; a laptop's broker needs no more throughput
        f"-Dlog4j2.configurationFile={log_config}",
        "-cp",
        ":".join(map(str, classpath)),
        main,
        *arguments,
    ]


def properties(settings: dict[str, str]) -> str:
    """The settings in Java's properties format, in which a backslash begins an escape."""
    return "".join(f"{name}={value}\n".replace("\\", "\\\\") for name, value in settings.items())
